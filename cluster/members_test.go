package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// gossiper is one Members that can be stopped and started.
type gossiper struct {
	*Members
	cfg    MembersConfig
	cancel context.CancelFunc
	done   chan error
	cable  *atomic.Bool // true: cut
}

// cableTransport drops and refuses everything while the cable is cut.
type cableTransport struct {
	*memberlist.NetTransport
	cut *atomic.Bool
}

func (c cableTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	if c.cut.Load() {
		return time.Now(), nil
	}
	return c.NetTransport.WriteTo(b, addr)
}

func (c cableTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return c.WriteTo(b, a.Addr)
}

func (c cableTransport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	if c.cut.Load() {
		return nil, errors.New("the cable is cut")
	}
	return c.NetTransport.DialTimeout(addr, d)
}

func (c cableTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	return c.DialTimeout(a.Addr, d)
}

// freePort is free for TCP and for UDP, and none that the kernel gives to others' sockets meanwhile.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for {
		port := 10000 + rand.IntN(20000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			p.Close()
			return uint16(port)
		}
	}
}

func gossip(t *testing.T, name string, key byte, seeds ...*gossiper) *gossiper {
	t.Helper()
	loopback := netip.MustParseAddr("127.0.0.1")
	cfg := MembersConfig{Name: name, Fingerprint: "key-" + name, Key: []byte(strings.Repeat(string(rune(key)), 32)), Dir: t.TempDir(),
		Bind: netip.AddrPortFrom(loopback, freePort(t)), Advertise: FixedAddress(loopback),
		Port: 6443, Version: "v0", Applied: func() uint64 { return 42 }, Log: testLog(t)}
	var ks []known
	for _, s := range seeds {
		ks = append(ks, known{Name: s.cfg.Name, API: "127.0.0.1:6443", Gossip: s.cfg.Bind.String()})
	}
	if err := saveKnown(cfg.Dir, ks); err != nil {
		t.Fatal(err)
	}
	g := &gossiper{cfg: cfg}
	g.start(t)
	t.Cleanup(func() { g.stop(t) })
	return g
}

func (g *gossiper) start(t *testing.T) {
	t.Helper()
	m, err := NewMembers(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if g.cable != nil {
		m.transport = func() (memberlist.Transport, error) {
			nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{g.cfg.Bind.Addr().String()},
				BindPort: int(g.cfg.Bind.Port()), Logger: log.New(io.Discard, "", 0)})
			return cableTransport{nt, g.cable}, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.Members, g.cancel, g.done = m, cancel, make(chan error, 1)
	done := g.done
	go func() { done <- m.Run(ctx) }()
}

// stop is a kill: nobody is told.
func (g *gossiper) stop(t *testing.T) {
	t.Helper()
	if g.cancel == nil {
		return
	}
	g.cancel()
	g.cancel = nil
	if err := <-g.done; err != nil {
		t.Errorf("gossip of %s: %v", g.cfg.Name, err)
	}
}

// view renders who is what, as "a:alive b:dead".
func (g *gossiper) view() string {
	var words []string
	for _, m := range g.Snapshot() {
		words = append(words, fmt.Sprintf("%s:%s", m.Name, m.State))
	}
	return strings.Join(words, " ")
}

func (g *gossiper) expect(t *testing.T, limit time.Duration, want string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("%s sees %q", g.cfg.Name, want), func() bool { return g.view() == want })
}

func TestGossip(t *testing.T) {
	a := gossip(t, "a", 'k')
	b := gossip(t, "b", 'k', a)
	c := gossip(t, "c", 'k', a)
	all := "a:alive b:alive c:alive"
	for _, g := range []*gossiper{a, b, c} {
		g.expect(t, 10*time.Second, all)
	}
	eventually(t, 5*time.Second, "round trips and indexes are known", func() bool {
		m, ok := a.Member("c")
		return ok && m.RTT > 0 && m.Index == 42 && m.Version == "v0" && m.Fingerprint == "key-c"
	})
	if got := a.Resolve("c"); len(got) != 1 || got[0] != "127.0.0.1:6443" {
		t.Errorf("Resolve = %v", got)
	}

	wake, cancel := a.Subscribe()
	defer cancel()
	<-wake
	c.stop(t)
	killed := time.Now()
	for _, g := range []*gossiper{a, b} {
		g.expect(t, 10*time.Second, "a:alive b:alive c:dead")
	}
	t.Logf("death known everywhere after %v", time.Since(killed))
	select {
	case <-wake:
	default:
		t.Error("the subscriber was not woken")
	}

	// Nobody is told that c is back; all find each other by themselves.
	c.start(t)
	for _, g := range []*gossiper{a, b, c} {
		g.expect(t, 10*time.Second, all)
	}

	if err := b.Leave(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	a.expect(t, 10*time.Second, "a:alive b:left c:alive")
}

// Both are dead to each other and remember it; neither was restarted. This is
// what a partition leaves.
func TestGossipHealsAPartition(t *testing.T) {
	var cut atomic.Bool
	a := gossip(t, "a", 'k')
	a.stop(t)
	a.cable = &cut
	a.start(t)
	b := gossip(t, "b", 'k', a)
	b.stop(t)
	b.cable = &cut
	b.start(t)
	a.expect(t, 10*time.Second, "a:alive b:alive")
	b.expect(t, 10*time.Second, "a:alive b:alive")
	cut.Store(true)
	a.expect(t, 10*time.Second, "a:alive b:dead")
	b.expect(t, 10*time.Second, "a:dead b:alive")
	cut.Store(false)
	healed := time.Now()
	a.expect(t, 10*time.Second, "a:alive b:alive")
	b.expect(t, 10*time.Second, "a:alive b:alive")
	t.Logf("healed after %v", time.Since(healed))
}

func TestGossipWithAnotherKeyGetsNowhere(t *testing.T) {
	a := gossip(t, "a", 'k')
	b := gossip(t, "b", 'k', a)
	x := gossip(t, "x", 'z', a)
	a.expect(t, 10*time.Second, "a:alive b:alive")
	b.expect(t, 10*time.Second, "a:alive b:alive")
	eventually(t, 10*time.Second, "x has tried", func() bool { return x.view() == "a:unknown x:alive" })
	if _, err := x.current().Join([]string{a.cfg.Bind.String()}); err == nil {
		t.Error("a peer with another key joined")
	}
	for _, g := range []*gossiper{a, b} {
		g.expect(t, 10*time.Second, "a:alive b:alive") // a busy machine suspects others now and then
	}
}

func TestGossipRefusesTheRemoved(t *testing.T) {
	a := gossip(t, "a", 'k')
	a.stop(t)
	a.cfg.Allowed = func(_, fp string) bool { return fp != "key-x" }
	a.start(t)
	x := gossip(t, "x", 'k', a)
	eventually(t, 10*time.Second, "x has exchanged states with a", func() bool { return strings.Contains(x.view(), "a:alive") })
	b := gossip(t, "b", 'k', a)
	b.expect(t, 10*time.Second, "a:alive b:alive")
	a.expect(t, 10*time.Second, "a:alive b:alive")
	if _, ok := a.Member("x"); ok {
		t.Errorf("a removed peer is there: %s", a.view())
	}
}

func TestKnownPeersAreWrittenOnChangeOnly(t *testing.T) {
	a := gossip(t, "a", 'k')
	b := gossip(t, "b", 'k', a)
	a.expect(t, 10*time.Second, "a:alive b:alive")
	path := filepath.Join(a.cfg.Dir, knownFile)
	eventually(t, 5*time.Second, "peers.json names b", func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), b.cfg.Bind.String())
	})
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b.stop(t)
	a.expect(t, 10*time.Second, "a:alive b:dead")
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("a death rewrote peers.json: %v", err)
	}
}

func TestMoveToAnotherAddress(t *testing.T) {
	a := gossip(t, "a", 'k')
	b := gossip(t, "b", 'k', a)
	b.stop(t)
	b.cfg.Bind = netip.AddrPortFrom(netip.IPv4Unspecified(), b.cfg.Bind.Port())
	var ours atomic.Value
	ours.Store(netip.MustParseAddr("127.0.0.1"))
	b.cfg.Advertise = func(netip.Addr, []netip.AddrPort) (netip.Addr, error) { return ours.Load().(netip.Addr), nil }
	b.start(t)
	// b too: who has met nobody has nobody to say goodbye to, and here, unlike
	// after DHCP, the old address goes on answering.
	a.expect(t, 10*time.Second, "a:alive b:alive")
	b.expect(t, 10*time.Second, "a:alive b:alive")
	ours.Store(netip.MustParseAddr("127.0.0.2"))
	eventually(t, 10*time.Second, "a knows the new address", func() bool {
		m, ok := a.Member("b")
		return ok && m.State == StateAlive && m.Address == netip.MustParseAddr("127.0.0.2")
	})
}

// An address of the other IP family may come and go while the peer runs.
func TestOtherAddress(t *testing.T) {
	a := gossip(t, "a", 'k')
	a.stop(t)
	var other atomic.Value
	other.Store(netip.Addr{})
	unknown := netip.MustParseAddr("192.0.2.1") // stands for an error
	asked := make(chan struct{}, 1)
	a.cfg.Other = func(advertised, current netip.Addr) (netip.Addr, error) {
		if advertised != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("asked for %s", advertised)
		}
		if now := other.Load().(netip.Addr); now != unknown {
			return now, nil
		}
		if current != netip.MustParseAddr("fd77::1") {
			t.Errorf("asked with %s, want what is known", current)
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		return netip.Addr{}, errors.New("no answer of the kernel")
	}
	a.start(t)
	a.expect(t, 10*time.Second, "a:alive")
	wake, cancel := a.Subscribe()
	defer cancel()
	for _, want := range []netip.Addr{netip.MustParseAddr("fd77::1"), unknown, {}} {
		other.Store(want)
		if want == unknown {
			for range 2 { // the second time, the first answer has been looked at
				select {
				case <-asked:
				case <-time.After(time.Minute):
					t.Fatal("nobody asked")
				}
			}
			if got := a.OtherAddress(); got != netip.MustParseAddr("fd77::1") {
				t.Errorf("after an error it is %s", got)
			}
			continue
		}
		for a.OtherAddress() != want {
			select {
			case <-wake:
			case <-time.After(time.Minute):
				t.Fatalf("nobody was told of another address; it is %s, want %s", a.OtherAddress(), want)
			}
		}
	}
}

func TestMetaFits(t *testing.T) {
	m := meta{V: metaVersion, Port: 65535, Version: strings.Repeat("x", maxVersion), Witness: true, Leaving: true, Hidden: true, WGPort: 65535,
		WGKey: strings.Repeat("x", 44), Key: strings.Repeat("x", 64), Started: 1 << 40, WGStarted: 1 << 62}
	if b, err := m.encode(512); err != nil {
		t.Errorf("%v (%d bytes)", err, len(b))
	}
}
