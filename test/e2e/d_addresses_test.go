package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Services of type LoadBalancer get addresses of the lab's LAN (two of them, see test/lab), which
// answer there and move when the peer that answers for one is cut off.
func TestAddressesOnTheLAN(t *testing.T) {
	allReady(t, patience)
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
		eventually(t, patience, func() error {
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
		eventually(t, patience, answers(ip))
	}

	sh(t, "h1", "rookery -n hello expose deployment hello --type LoadBalancer --port 80 --target-port 8080 --name lan-c")
	eventually(t, patience, func() error {
		out := sh(t, "h3", "rookery -n hello get events --field-selector involvedObject.name=lan-c,reason=NoAddress")
		if !strings.Contains(out, "all 2 load-balancer-addresses of its IP family are in use") {
			return fmt.Errorf("no event says why lan-c has no address: %s", out)
		}
		return nil
	})
	// What one gives back, another gets.
	sh(t, "h1", "rookery -n hello delete service lan-a")
	eventually(t, patience, func() error {
		if address("lan-c") == "" {
			return fmt.Errorf("lan-c has no address yet")
		}
		return nil
	})

	ip := address("lan-b")
	eventually(t, patience, answers(ip))
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
	took := eventually(t, patience, answers(ip))
	t.Logf("%s, which %s answered for, answers again %.1f s after the cut", ip, owner, took.Seconds())
	other := "h1"
	if owner == other {
		other = "h2"
	}
	eventually(t, patience, func() error {
		out, err := shared.Run(t.Context(), other, "rookery", "net", "check")
		if err == nil || !strings.Contains(out, "the peer is dead") {
			return fmt.Errorf("the check does not name %s: %v:\n%s", owner, err, out)
		}
		return nil
	})
	if err := shared.Heal(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	allReady(t, patience)
	eventually(t, patience, answers(ip))
	agree(t)
}

// A machine gets another address while its daemon runs, as by DHCP: the others follow within
// seconds, pods and Services go on, and it can write.
func TestAddressChanges(t *testing.T) {
	allReady(t, patience)
	spread(t, "h1")
	victim := follower(t)
	host, err := shared.Host(victim)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shared.HostDir(victim), "rookery.yaml")
	pinned, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fixed := "advertise-address: " + host.IP + "\n"
	if !strings.Contains(string(pinned), fixed) {
		t.Fatalf("the address is not fixed in %s:\n%s", path, pinned)
	}
	change := func(from, to string) {
		t.Helper()
		must(t, victim, "sh", "-ec", fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr add %s/24 dev eth0", from, to))
	}
	move := func(from, to string) {
		t.Helper()
		change(from, to)
		began := time.Now()
		// As a rule seconds; who hears of the new address before it knows that the old one is gone
		// refuses it, and hears again within gossip's half a minute.
		for _, h := range shared.Peers() {
			eventually(t, 5*time.Minute, func() error {
				s, err := status(t.Context(), h.Name)
				for _, p := range s.Peers {
					if p.Name == victim && (p.State != "alive" || p.Address != to) {
						err = fmt.Errorf("%s sees %s at %s, %s", h.Name, victim, p.Address, p.State)
					}
				}
				return err
			})
		}
		t.Logf("%s has moved to %s; all know after %.1fs", victim, to, time.Since(began).Seconds())
		eventually(t, patience, func() error {
			_, err := shared.Run(t.Context(), victim, "rookery", "-n", "hello", "annotate", "service", "hello", "moved="+to, "--overwrite")
			return err
		})
		for _, h := range shared.Peers() {
			eventually(t, patience, func() error {
				_, err := shared.Run(t.Context(), h.Name, "rookery", "net", "check")
				return err
			})
		}
		t.Logf("all is whole after %.1fs", time.Since(began).Seconds())
	}
	const other = "10.77.0.77"
	// While its configuration says the address that it had, it cannot follow, and says why.
	change(host.IP, other)
	// The others are asked once a minute, and three times in a row.
	astray := fmt.Sprintf("at %s, its advertise-address, which this machine does not have (it has [%s", host.IP, other)
	took := eventually(t, patience, func() error {
		out, err := shared.Run(t.Context(), victim, "rookery", "status")
		if err == nil && !strings.Contains(out, astray) {
			err = fmt.Errorf("status does not say %q:\n%s", astray, out)
		}
		return err
	})
	t.Logf("%s said after %.1fs that it is not where it is looked for", victim, took.Seconds())
	change(other, host.IP)
	allReady(t, 5*time.Minute)
	eventually(t, 5*time.Minute, func() error {
		out, err := shared.Run(t.Context(), victim, "rookery", "status")
		if err == nil && strings.Contains(out, "advertise-address") {
			err = fmt.Errorf("status still says:\n%s", out)
		}
		return err
	})
	restart(t, victim, strings.Replace(string(pinned), fixed, "", 1))
	move(host.IP, other)
	move(other, host.IP)
	restart(t, victim, string(pinned))
	agree(t)
}
