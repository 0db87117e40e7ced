// Package hidden executes a cluster in which some peers cannot be dialled, on the real binary
// with real Podman: h3 is behind a router with NAT, h4 has a firewall that lets nobody in. h1
// and h2 are as peers mostly are.
package hidden

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab"
	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// patience is for what takes seconds, on a machine that has no time.
const patience = 3 * time.Minute

type world struct {
	t   *testing.T
	lab *lab.Lab
}

func open() []string   { return []string{"h1", "h2"} }
func hidden() []string { return []string{"h3", "h4"} }

// TestHiddenPeers goes through the life of such a cluster; each part leaves it whole.
func TestHiddenPeers(t *testing.T) {
	w := world{t, labtest.Start(t, "hidden", lab.Options{Peers: 4, NAT: []int{3}, Blank: true})}
	if err := w.lab.Wall(t.Context(), "h4"); err != nil {
		t.Fatal(err)
	}
	if err := w.lab.Form(t.Context(), nil, func(s string) { t.Log("lab:", s) }, true); err != nil {
		t.Fatal(err)
	}
	// Nobody replaces these pods: they stay, however long a busy machine needs until their peer is back.
	for _, h := range w.lab.Peers() {
		w.sh("h1", fmt.Sprintf(`rookery run on-%[1]s --image=localhost/hello:1 --labels=on=%[1]s --env=POD_NAME=on-%[1]s --overrides={"spec":{"nodeName":"%[1]s","tolerations":[{"operator":"Exists"}]}} -- serve`, h.Name))
		w.sh("h1", fmt.Sprintf("rookery create service clusterip on-%s --tcp=80:8080", h.Name))
		w.sh("h1", fmt.Sprintf("rookery set selector service on-%[1]s on=%[1]s", h.Name))
	}
	w.sh("h1", "rookery wait --for=condition=Ready pods --all --timeout=3m")
	t.Run("all is whole", func(t *testing.T) { world{t, w.lab}.whole() })
	t.Run("what is not is said", func(t *testing.T) { world{t, w.lab}.said() })
	t.Run("a hidden peer restarts", func(t *testing.T) { world{t, w.lab}.restart("h3") })
	t.Run("a router gets another address", func(t *testing.T) { world{t, w.lab}.renumber() })
	t.Run("the others restart", func(t *testing.T) { world{t, w.lab}.restart("h1", "h2") })
	t.Run("hidden peers die", func(t *testing.T) { world{t, w.lab}.die() })
	t.Run("a firewall is opened", func(t *testing.T) { world{t, w.lab}.unwall() })
}

func (w world) sh(host, line string) string {
	w.t.Helper()
	return labtest.Run(w.t, w.lab, host, line)
}

func (w world) shows(host, line string, want ...string) {
	w.t.Helper()
	labtest.Shows(w.t, w.lab, patience, host, line, want...)
}

type status struct {
	Quorum   bool
	Leader   string
	Revision int64
	Digest   string
	Peers    []struct {
		Name, State string
		Hidden      bool
	}
	Problems []struct{ What, Do string }
}

// until polls the status of a peer until it is as wanted.
func (w world) until(host string, wanted func(status) error) time.Duration {
	w.t.Helper()
	return labtest.Eventually(w.t, patience, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
		defer cancel()
		var s status
		if err := w.lab.JSON(ctx, &s, host, "rookery", "status", "--json"); err != nil {
			return err
		}
		if err := wanted(s); err != nil {
			return fmt.Errorf("%s says: %w", host, err)
		}
		return nil
	})
}

// peers wants all four alive, and these to be known as hidden.
func peers(hidden ...string) func(status) error {
	return func(s status) error {
		if len(s.Peers) != 4 || !s.Quorum {
			return fmt.Errorf("%d peers, quorum %v", len(s.Peers), s.Quorum)
		}
		for _, p := range s.Peers {
			if p.State != "alive" || p.Hidden != slices.Contains(hidden, p.Name) {
				return fmt.Errorf("%s is %s, hidden %v", p.Name, p.State, p.Hidden)
			}
		}
		return nil
	}
}

// whole holds what a user expects of every peer: it is there, has the state, and its pods are
// seen into and reached, from each peer that is not hidden, and reach what is there.
func (w world) whole() {
	w.t.Helper()
	for _, h := range open() {
		w.until(h, peers("h3", "h4"))
		w.until(h, func(s status) error {
			if !slices.Contains(open(), s.Leader) {
				return fmt.Errorf("the leader is %s, which one of the others cannot dial", s.Leader)
			}
			return nil
		})
	}
	w.sh("h1", "rookery wait --for=condition=Ready nodes --all --timeout=3m")
	for _, h := range hidden() {
		for _, o := range open() {
			w.shows(o, "rookery logs on-"+h, "listening")
			w.shows(o, "rookery exec on-"+h+" -- /hello get http://on-"+o+".default.svc.cluster.local", "from pod on-"+o+" ")
			w.shows(o, "rookery exec on-"+o+" -- /hello get http://on-"+h+".default.svc.cluster.local", "from pod on-"+h+" ")
			w.shows(o, w.lab.Bin+"/hello get http://on-"+h+".default.svc.cluster.local", "from pod on-"+h+" ")
		}
		w.shows(h, "rookery logs on-h1", "listening")
	}
	labtest.Eventually(w.t, patience, func() error {
		seen := map[string]string{}
		for _, h := range w.lab.Peers() {
			var s status
			if err := w.lab.JSON(w.t.Context(), &s, h.Name, "rookery", "status", "--json"); err != nil {
				return err
			}
			seen[fmt.Sprint(s.Revision, s.Digest)] = h.Name
		}
		if len(seen) != 1 {
			return fmt.Errorf("states differ: %v", seen)
		}
		return nil
	})
}

// said: between the two hidden ones is no way, and another backend than WireGuard has none to them.
func (w world) said() {
	problem := func(text string) func(status) error {
		return func(s status) error {
			for _, p := range s.Problems {
				if strings.Contains(p.What, text) {
					return nil
				}
			}
			return fmt.Errorf("no problem %q among %v", text, s.Problems)
		}
	}
	w.until("h3", problem("peer h4 and this one cannot dial each other"))
	w.until("h4", problem("peer h3 and this one cannot dial each other"))
	w.sh("h1", "rookery net use vxlan")
	w.until("h1", problem("pods of this peer and of h4 may not reach each other: this peer cannot dial h4, and the network vxlan needs both directions"))
	w.until("h4", problem("pods of this peer and of h1 may not reach each other: h1 cannot dial this peer"))
	w.sh("h1", "rookery net use wireguard")
	for _, h := range open() {
		w.until(h, func(s status) error {
			if len(s.Problems) > 0 {
				return fmt.Errorf("%v", s.Problems)
			}
			return nil
		})
	}
	w.whole()
}

func (w world) restart(hosts ...string) {
	for _, h := range hosts {
		if err := w.lab.Kill(w.t.Context(), h); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, h := range hosts {
		if err := w.lab.Start(w.t.Context(), h); err != nil {
			w.t.Fatal(err)
		}
	}
	w.shows("h1", "rookery get --raw /readyz", "ok")
	w.whole()
}

// renumber: h3 comes from another address, and is found there.
func (w world) renumber() {
	to := netip.MustParseAddr("10.77.0.150")
	began := time.Now()
	if err := w.lab.Renumber(w.t.Context(), "h3", to); err != nil {
		w.t.Fatal(err)
	}
	for _, h := range open() {
		labtest.Eventually(w.t, patience, func() error {
			out, err := w.lab.Run(w.t.Context(), h, "ss", "-Htn", "state", "established")
			for _, word := range strings.Fields(out) {
				if at, err := netip.ParseAddrPort(word); err == nil && at.Addr().Unmap() == to {
					return nil
				}
			}
			return fmt.Errorf("nothing comes to %s from %s: %s %v", h, to, out, err)
		})
		w.t.Logf("%s hears it after %.1fs", h, time.Since(began).Seconds())
	}
	w.whole()
	w.t.Logf("all is whole after %.1fs", time.Since(began).Seconds())
}

// die: who is hidden is missed like any other, whether its daemon ends or its cable is cut.
func (w world) die() {
	dead := func(name string) func(status) error {
		return func(s status) error {
			for _, p := range s.Peers {
				if p.Name == name && p.State == "dead" {
					return nil
				}
			}
			return fmt.Errorf("%s is not dead: %v", name, s.Peers)
		}
	}
	for _, f := range []struct {
		victim     string
		hurt, mend func(context.Context, string) error
	}{
		{"h3", w.lab.Cut, w.lab.Heal},
		{"h4", w.lab.Kill, func(ctx context.Context, h string) error { return w.lab.Start(ctx, h) }},
		{"h2", w.lab.Kill, func(ctx context.Context, h string) error { return w.lab.Start(ctx, h) }}, // to compare
	} {
		if err := f.hurt(w.t.Context(), f.victim); err != nil {
			w.t.Fatal(err)
		}
		w.t.Logf("%s is dead after %.1fs", f.victim, w.until("h1", dead(f.victim)).Seconds())
		if err := f.mend(w.t.Context(), f.victim); err != nil {
			w.t.Fatal(err)
		}
		w.whole()
	}
}

// unwall: h4 is found to be dialled at its next start, and goes on as any peer.
func (w world) unwall() {
	if err := w.lab.Unwall(w.t.Context(), "h4"); err != nil {
		w.t.Fatal(err)
	}
	if err := w.lab.Kill(w.t.Context(), "h4"); err != nil {
		w.t.Fatal(err)
	}
	if err := w.lab.Start(w.t.Context(), "h4"); err != nil {
		w.t.Fatal(err)
	}
	for _, h := range open() {
		w.until(h, peers("h3"))
		w.shows(h, "rookery logs on-h4", "listening")
	}
	w.shows("h1", "rookery exec on-h3 -- /hello get http://on-h4.default.svc.cluster.local", "from pod on-h4 ")
	w.shows("h1", "rookery exec on-h4 -- /hello get http://on-h3.default.svc.cluster.local", "from pod on-h3 ")
}
