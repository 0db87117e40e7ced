package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// In a dual-stack cluster a pod has two addresses, and so has its machine; everywhere they
// are told in the same order, and what takes one gets the first.
func TestPodsOfTwoIPFamilies(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop() // it was of one family
		if err := w.client.CoreV1().Nodes().Delete(context.Background(), "p1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.network.second = netip.MustParseAddr("fd42::2")
		w.hostIPs = []string{"192.0.2.1", "fd77::1"}
		w.podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}
		w.start()
		env := make(chan []string, 2)
		w.script["web"] = func(ctx context.Context, p memory.Process) int {
			var all []string
			for _, e := range p.Spec.Env {
				all = append(all, e.Name+"="+e.Value)
			}
			env <- all
			return untilStopped(ctx, p)
		}
		const fields = `
  containers:
  - name: web
    image: localhost/hello:1
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
`
		w.create("metadata: {name: a}\nspec:" + fields)
		w.sleep(time.Second)
		status := w.pod("a").Status
		if status.PodIP != "10.42.0.1" || !slices.Equal(status.PodIPs, []v1.PodIP{{IP: "10.42.0.1"}, {IP: "fd42::2"}}) ||
			status.HostIP != "192.0.2.1" || !slices.Equal(status.HostIPs, []v1.HostIP{{IP: "192.0.2.1"}, {IP: "fd77::1"}}) {
			t.Errorf("addresses of the pod: %+v", status)
		}
		got := <-env
		for _, want := range []string{"IP=10.42.0.1", "IPS=10.42.0.1,fd42::2", "HOST=192.0.2.1", "HOSTS=192.0.2.1,fd77::1"} {
			if !slices.Contains(got, want) {
				t.Errorf("%s is not in %q", want, got)
			}
		}
		hosts, err := os.ReadFile(w.dir + "/uid-a/etc/hosts")
		if err != nil || !strings.Contains(string(hosts), "\n10.42.0.1\ta\nfd42::2\ta\n") {
			t.Errorf("/etc/hosts: %s, %v", hosts, err)
		}

		w.create("metadata: {name: b}\nspec:\n  hostNetwork: true" + fields)
		w.sleep(time.Second)
		if status := w.pod("b").Status; !slices.Equal(status.PodIPs, []v1.PodIP{{IP: "192.0.2.1"}, {IP: "fd77::1"}}) {
			t.Errorf("addresses of the pod in the machine's network: %+v", status.PodIPs)
		}

		node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
		if err != nil || !slices.Equal(node.Spec.PodCIDRs, []string{"10.42.0.0/24", "fd42::/64"}) || node.Spec.PodCIDR != "10.42.0.0/24" ||
			len(node.Status.Addresses) != 2 || node.Status.Addresses[1].Address != "fd77::1" {
			t.Errorf("node: %+v %+v, %v", node.Spec, node.Status.Addresses, err)
		}
	})
}

// The IPv6 address of a machine may come after the daemon has started.
func TestMachineGetsItsSecondAddress(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create("metadata: {name: a}\nspec:\n  hostNetwork: true\n  containers: [{name: web, image: \"localhost/hello:1\"}]")
		w.sleep(time.Second)
		if ips := w.pod("a").Status.PodIPs; len(ips) != 1 {
			t.Fatalf("addresses before: %v", ips)
		}
		w.mu.Lock()
		w.hostIPs = append(w.hostIPs, "fd77::1")
		w.mu.Unlock()
		w.sleep(2 * time.Minute)
		if got := w.pod("a").Status; len(got.PodIPs) != 2 || got.PodIPs[1].IP != "fd77::1" || len(got.HostIPs) != 2 {
			t.Errorf("addresses of the pod: %+v", got)
		}
		node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
		if err != nil || len(node.Status.Addresses) != 2 {
			t.Errorf("addresses of the node: %+v, %v", node.Status.Addresses, err)
		}
	})
}

// What listens on either loopback is reached by port-forward.
func TestForwardToALoopbackOfEitherFamily(t *testing.T) {
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(loopback, func(t *testing.T) {
			l, err := net.Listen("tcp", loopback)
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				t.Skipf("this machine has no such address: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			inWorld(t, func(w *world) {
				w.create("metadata: {name: a}\nspec:\n  hostNetwork: true\n  containers: [{name: web, image: \"localhost/hello:1\"}]")
				go func() {
					if conn, err := l.Accept(); err == nil {
						io.WriteString(conn, "hello")
						conn.Close()
					}
				}()
				port := int32(l.Addr().(*net.TCPAddr).Port)
				conn, err := (streams{w.agent}).Dial(context.Background(), "default", "a", port)
				if err != nil {
					t.Fatal(err)
				}
				if text, err := io.ReadAll(conn); err != nil || string(text) != "hello" {
					t.Errorf("%q, %v", text, err)
				}
				conn.Close()
				if _, err := (streams{w.agent}).Dial(context.Background(), "default", "a", 1); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
					t.Errorf("nobody listens: %v", err)
				}
			})
		})
	}
}
