package network_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkBetweenPods sends over one TCP connection from a pod to another peer's, and
// tells the daemon's own memory before and after.
func BenchmarkBetweenPods(b *testing.B) {
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		b.Run(backend, func(b *testing.B) {
			l := newLab(b, 2, backend)
			l.hosts[0].up()
			l.hosts[1].up()
			l.peers()
			from, to := l.hosts[0].pod("from"), l.hosts[1].pod("to")
			idle := anonymous(b, l.hosts[1])
			const piece = 64 << 20
			b.SetBytes(piece)
			b.ResetTimer()
			cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", from.pid), "--", os.Args[0])
			cmd.Env = append(os.Environ(), "NETT_ROLE=blast", "NETT_TARGET="+to.addr+":8081", fmt.Sprintf("NETT_COUNT=%d", b.N*piece))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			b.StopTimer()
			b.ReportMetric(idle, "idle-anon-MB")
			b.ReportMetric(anonymous(b, l.hosts[1]), "after-anon-MB")
		})
	}
}

// anonymous is the memory of the daemon that is not backed by a file, in MB.
func anonymous(t testing.TB, m *machine) float64 {
	t.Helper()
	// nsenter has become the daemon: same process.
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "RssAnon:")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}
