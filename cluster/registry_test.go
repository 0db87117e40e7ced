package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func TestRegister(t *testing.T) {
	ctx := t.Context()
	r := NewRegistry(newStore(t), identity.DefaultSettings())
	register := func(name, key, wantCIDR string, wantErr error) {
		t.Helper()
		p, err := r.Register(ctx, peer(name, key))
		if !errors.Is(err, wantErr) {
			t.Fatalf("Register %s %s: %v, want %v", name, key, err, wantErr)
		}
		if err == nil && p.PodCIDR.String() != wantCIDR {
			t.Fatalf("Register %s %s: %s, want %s", name, key, p.PodCIDR, wantCIDR)
		}
	}
	register("a", "ka", "10.42.0.0/24", nil)
	register("b", "kb", "10.42.1.0/24", nil)
	register("c", "kc", "10.42.2.0/24", nil)
	register("b", "kb", "10.42.1.0/24", nil)
	register("b", "kx", "", ErrNameTaken)

	if err := r.Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if !r.Allowed("b", "kb") {
		t.Error("a peer that is being removed is refused before Raft has let it go")
	}
	register("b", "kb", "", ErrRemoved)
	if err := r.Forget(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if r.Allowed("b", "kb") {
		t.Error("a removed key is allowed")
	}
	register("b", "kb", "", ErrRemoved)
	register("b", "kb2", "10.42.1.0/24", nil)
	if !r.Allowed("b", "kb2") || !r.Allowed("z", "unheard") {
		t.Error("a good key is refused")
	}
	if err := r.Remove(ctx, "nobody"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("Remove of nobody: %v", err)
	}
}

func TestTheLastPeerStays(t *testing.T) {
	r := NewRegistry(newStore(t), identity.DefaultSettings())
	if _, err := r.Register(t.Context(), peer("a", "ka")); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), "a"); err == nil {
		t.Error("the last peer was removed")
	}
}

func TestRegisterUnchangedWritesNothing(t *testing.T) {
	store := newStore(t)
	r := NewRegistry(store, identity.DefaultSettings())
	for range 2 {
		if _, err := r.Register(t.Context(), peer("a", "ka")); err != nil {
			t.Fatal(err)
		}
	}
	if rev := store.Revision(); rev != 2 {
		t.Errorf("revision %d, want 2: one write", rev)
	}
}

// Many join at once: each gets its own share, and together they are the lowest ones.
func TestRegisterTogether(t *testing.T) {
	store := newStore(t)
	r := NewRegistry(store, identity.DefaultSettings())
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprintf("p%d", i)
			if _, err := r.Register(t.Context(), peer(name, "k"+name)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	peers, err := r.Peers()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range peers {
		if seen[p.PodCIDR] || int(p.PodCIDR.Addr().As4()[2]) >= len(peers) {
			t.Errorf("%s got %s", p.Name, p.PodCIDR)
		}
		seen[p.PodCIDR] = true
	}
	if len(peers) != 20 {
		t.Errorf("%d peers", len(peers))
	}
}

func TestLowestFree(t *testing.T) {
	for _, tc := range []struct {
		network string
		bits    int
		taken   int
		want    string
	}{
		{"10.42.0.0/16", 24, 0, "10.42.0.0/24"},
		{"10.42.0.0/16", 24, 255, "10.42.255.0/24"},
		{"10.42.0.0/16", 24, 256, ""},
		{"10.40.0.0/14", 24, 256, "10.41.0.0/24"},
		{"10.42.0.0/24", 24, 0, "10.42.0.0/24"},
		{"10.42.0.0/24", 24, 1, ""},
		{"255.255.254.0/23", 24, 2, ""},
		{"fd42::/56", 64, 3, "fd42:0:0:3::/64"},
		{"fd42::/63", 64, 2, ""},
	} {
		n := 0
		got, err := lowestFree(netip.MustParsePrefix(tc.network), tc.bits, func(netip.Prefix) bool { n++; return n <= tc.taken })
		if (err != nil) != (tc.want == "") || (err == nil && got.String() != tc.want) || (err != nil && !errors.Is(err, ErrNoSubnet)) {
			t.Errorf("%+v: %v, %v", tc, got, err)
		}
	}
}
