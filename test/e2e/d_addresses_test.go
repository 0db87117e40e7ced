package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Services of type LoadBalancer get addresses of the lab's LAN (two of them, see test/lab), which
// answer there and move when the peer that answers for one is cut off.
func TestAddressesOnTheLAN(t *testing.T) {
	allReady(t, time.Minute)
	scale(t, "h1", 9)
	names := []string{"lan-a", "lan-b", "lan-c"}
	t.Cleanup(func() {
		if out, err := shared.Run(context.Background(), "h1", append(strings.Fields("rookery -n hello delete service --ignore-not-found"), names...)...); err != nil {
			t.Error(err, out)
		}
	})
	address := func(name string) string {
		return strings.TrimSpace(sh(t, "h2", "rookery -n hello get service "+name+" -o jsonpath={.status.loadBalancer.ingress[0].ip}"))
	}
	for _, name := range names[:2] {
		sh(t, "h1", "rookery -n hello expose deployment hello --type LoadBalancer --port 80 --target-port 8080 --name "+name)
	}
	var ips []string
	for _, name := range names[:2] {
		eventually(t, time.Minute, func() error {
			if address(name) == "" {
				return fmt.Errorf("%s has no address", name)
			}
			return nil
		})
		ips = append(ips, address(name))
	}
	if slices.Sort(ips); !slices.Equal(ips, []string{"10.77.0.200", "10.77.0.201"}) {
		t.Fatalf("the addresses are %v", ips)
	}
	answers := func(ip string) func() error {
		return func() error {
			out, err := shared.Run(t.Context(), "client", "curl", "-sS", "--max-time", "1", "http://"+ip+"/")
			if err != nil || !strings.Contains(out, "from pod") {
				return fmt.Errorf("%s: %s %v", ip, out, err)
			}
			return nil
		}
	}
	for _, ip := range ips {
		eventually(t, time.Minute, answers(ip))
	}

	sh(t, "h1", "rookery -n hello expose deployment hello --type LoadBalancer --port 80 --target-port 8080 --name lan-c")
	eventually(t, time.Minute, func() error {
		out := sh(t, "h3", "rookery -n hello get events --field-selector involvedObject.name=lan-c,reason=NoAddress")
		if !strings.Contains(out, "all 2 load-balancer-addresses of its IP family are in use") {
			return fmt.Errorf("no event says why lan-c has no address: %s", out)
		}
		return nil
	})
	// What one gives back, another gets.
	sh(t, "h1", "rookery -n hello delete service lan-a")
	eventually(t, time.Minute, func() error {
		if address("lan-c") == "" {
			return fmt.Errorf("lan-c has no address yet")
		}
		return nil
	})

	ip := address("lan-b")
	eventually(t, time.Minute, answers(ip))
	neigh := sh(t, "client", "ip neigh show "+ip)
	owner := ""
	for _, h := range shared.Peers() {
		if mac := strings.Fields(sh(t, h.Name, "ip -br link show eth0"))[2]; strings.Contains(neigh, mac) {
			owner = h.Name
		}
	}
	if owner == "" {
		t.Fatalf("nobody is at %s", neigh)
	}
	if err := shared.Cut(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, time.Minute, answers(ip))
	t.Logf("%s, which %s answered for, answers again %.1f s after the cut", ip, owner, took.Seconds())
	other := "h1"
	if owner == other {
		other = "h2"
	}
	eventually(t, time.Minute, func() error {
		out, err := shared.Run(t.Context(), other, "rookery", "net", "check")
		if err == nil || !strings.Contains(out, "the peer is dead") {
			return fmt.Errorf("the check does not name %s: %v:\n%s", owner, err, out)
		}
		return nil
	})
	if err := shared.Heal(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	allReady(t, time.Minute)
	eventually(t, time.Minute, answers(ip))
	agree(t)
}
