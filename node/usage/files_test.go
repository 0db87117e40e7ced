package usage

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// What a kubelet's summary says of files, network and processes; files are measured again
// only when that is not too often.
func TestSummary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		measured := 0
		start := time.Now()
		s := NewSampler(func(context.Context) (*Sample, error) {
			now := time.Now()
			return &Sample{
				Node: Counter{At: now, CPU: time.Since(start), Memory: 1 << 30}, Network: []Interface{{Name: "wlan0", Received: 1}, {Name: "eth0", Received: 7, Sent: 8, ReceiveErrors: 1}},
				Pods: []Pod{{
					Namespace: "ns", Name: "a", UID: "u1", Started: start, Network: []Interface{{Name: "eth0", Received: 5, Sent: 6, SendErrors: 2}},
					Containers: []Container{{Counter{now, time.Second, 1 << 20, 3}, "id1", "web", start}, {Counter{now, time.Second, 1 << 20, 2}, "id2", "side", start}},
				}, {Namespace: "ns", Name: "b", UID: "u2"}},
			}, nil
		}, func(context.Context) (*Files, error) {
			measured++
			time.Sleep(4 * time.Second)
			return &Files{
				At: time.Now(), Node: FS{100, 1000, 10, 50}, Images: FS{200, 2000, 0, 0}, Processes: 300, MaxProcesses: 32768,
				Pods: map[string]PodFiles{"u1": {
					Containers: map[string]ContainerFiles{"web": {space(10, 1), space(20, 2)}, "side": {space(1, 1), space(2, 1)}},
					Volumes:    map[string]runtime.Space{"v": space(40, 4), "data": space(80, 8)}, Other: space(160, 16),
				}},
			}, nil
		})
		ask := func() (out stats.Summary) {
			t.Helper()
			answer := httptest.NewRecorder()
			Handler(s, "n1", slog.New(slog.DiscardHandler)).ServeHTTP(answer, httptest.NewRequest("GET", "/stats/summary", nil))
			if err := json.Unmarshal(answer.Body.Bytes(), &out); err != nil {
				t.Fatalf("%v in %s", err, answer.Body)
			}
			return out
		}
		out := ask()
		n, a, b := out.Node, out.Pods[0], out.Pods[1]
		if *n.Fs.AvailableBytes != 100 || *n.Fs.UsedBytes != 900 || *n.Fs.InodesUsed != 40 || *n.Runtime.ImageFs.CapacityBytes != 2000 || n.Runtime.ImageFs.Inodes != nil ||
			*n.Rlimit.NumOfRunningProcesses != 300 || *n.Rlimit.MaxPID != 32768 || n.Network.Name != "eth0" || *n.Network.RxBytes != 7 || len(n.Network.Interfaces) != 2 {
			t.Errorf("node: %+v", n)
		}
		if *a.EphemeralStorage.UsedBytes != 313 || *a.EphemeralStorage.InodesUsed != 33 || *a.ProcessStats.ProcessCount != 5 || *a.Network.TxBytes != 6 || *a.Network.TxErrors != 2 {
			t.Errorf("pod: %+v", a)
		}
		if c := a.Containers[0]; *c.Rootfs.UsedBytes != 10 || *c.Logs.UsedBytes != 20 || *c.Rootfs.CapacityBytes != 2000 {
			t.Errorf("container: %+v", c)
		}
		if v := a.VolumeStats; len(v) != 2 || v[0].Name != "data" || *v[0].UsedBytes != 80 || *v[1].InodesUsed != 4 {
			t.Errorf("volumes: %+v", v)
		}
		if b.EphemeralStorage != nil || b.Network != nil || b.VolumeStats != nil || b.ProcessStats != nil {
			t.Errorf("a pod that does not run: %+v", b)
		}
		for range 7 { // a minute, of which measuring took four seconds: twenty times that is to pass
			time.Sleep(10 * time.Second)
			ask()
		}
		if measured != 1 {
			t.Errorf("measured %d times", measured)
		}
		time.Sleep(20 * time.Second)
		if ask(); measured != 2 {
			t.Errorf("measured %d times after a while", measured)
		}
	})
}

func TestNetwork(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "77/net/dev")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(line string) {
		t.Helper()
		header := "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
		if err := os.WriteFile(path, []byte(header+"    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"+line), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("  eth0:1000 2 3 4 5 6 7 8 9000 10 11 12 13 14 15 16\n")
	have, err := Network(dir, "77")
	if err != nil || len(have) != 1 || have[0] != (Interface{"eth0", 1000, 3, 9000, 11}) {
		t.Errorf("have %+v, %v", have, err)
	}
	write("eth0: x 2 3 4 5 6 7 8 9000 10 11 12 13 14 15 16\n")
	if _, err := Network(dir, "77"); err == nil {
		t.Error("rubbish was understood")
	}
	if _, err := Network(dir, "78"); err == nil {
		t.Error("a process that is not there has a network")
	}
}

func space(bytes, inodes int64) runtime.Space { return runtime.Space{Bytes: bytes, Inodes: inodes} }
