package usage

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Interface is what went through a network interface since it is there, in bytes and
// failed packets.
type Interface struct {
	Name                                      string
	Received, ReceiveErrors, Sent, SendErrors uint64
}

// Network reads the interfaces of a network namespace from a process in it, under proc,
// which is /proc. The loopback is left out, and there is none before the network is.
func Network(proc, pid string) ([]Interface, error) {
	data, err := os.ReadFile(filepath.Join(proc, pid, "net/dev"))
	if err != nil {
		return nil, fmt.Errorf("read network counters: %w", err)
	}
	var out []Interface
	for line := range strings.Lines(string(data)) {
		// "NAME: BYTES PACKETS ERRORS … (8 received, then 8 sent)", proc(5)
		name, numbers, found := strings.Cut(line, ":")
		fields := strings.Fields(numbers)
		if name = strings.TrimSpace(name); !found || len(fields) < 16 || name == "lo" {
			continue
		}
		i := Interface{Name: name}
		for at, to := range map[int]*uint64{0: &i.Received, 2: &i.ReceiveErrors, 8: &i.Sent, 10: &i.SendErrors} {
			if *to, err = strconv.ParseUint(fields[at], 10, 64); err != nil {
				return nil, fmt.Errorf("read network counters of %s: %w", name, err)
			}
		}
		out = append(out, i)
	}
	return out, nil
}

// network is in a kubelet's terms: the first interface, eth0 if there is one, stands for
// all. nil: there is none.
func network(at time.Time, list []Interface) *stats.NetworkStats {
	if len(list) == 0 {
		return nil
	}
	out := &stats.NetworkStats{Time: metav1.NewTime(at)}
	for _, i := range list {
		one := stats.InterfaceStats{Name: i.Name, RxBytes: new(i.Received), RxErrors: new(i.ReceiveErrors), TxBytes: new(i.Sent), TxErrors: new(i.SendErrors)}
		if out.Name == "" || i.Name == "eth0" {
			out.InterfaceStats = one
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	return out
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
