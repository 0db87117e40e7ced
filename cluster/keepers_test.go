package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cluster/reverse"
)

// machine is one peer's port, gossip and kept connections.
type machine struct {
	name    string
	port    *Port
	members *Members
	keepers *Keepers
	known   known
	linked  sync.Map // names of those that ever kept a connection to here
	stop    func()
}

// start starts a peer on loopback that knows others. One that is behind says an address where
// nothing of its listens, as a machine behind NAT does.
func start(t *testing.T, id *identity.Identity, behind bool, seeds ...*machine) *machine {
	return startPatient(t, id, behind, time.Hour, seeds...) // the machine may be slow
}

func startPatient(t *testing.T, id *identity.Identity, behind bool, patience time.Duration, seeds ...*machine) *machine {
	t.Helper()
	m := &machine{name: id.Name()}
	loopback, advertised := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")
	if behind {
		advertised = netip.MustParseAddr("127.0.0.99")
	}
	var err error
	m.port, err = Listen(PortConfig{Listen: "127.0.0.1:0", Identity: id, Log: testLog(t).With("at", id.Name()),
		Resolve: func(name string) []string { return m.members.Resolve(name) },
		Changed: func() {
			for _, x := range m.members.Snapshot() {
				if m.port.Linked(x.Name) {
					m.linked.Store(x.Name, true)
				}
			}
			m.members.Changed()
		}})
	if err != nil {
		t.Fatal(err)
	}
	port := m.port.Addr().(*net.TCPAddr).AddrPort().Port()
	cfg := MembersConfig{Name: id.Name(), Fingerprint: id.Fingerprint(), Key: id.GossipKey(), Dir: t.TempDir(), Links: m.port,
		Bind: netip.AddrPortFrom(loopback, freePort(t)), Advertise: FixedAddress(advertised), Port: port, Log: testLog(t).With("at", id.Name())}
	m.known = known{Name: id.Name(), API: netip.AddrPortFrom(advertised, port).String(), Gossip: netip.AddrPortFrom(advertised, cfg.Bind.Port()).String()}
	var all []known
	for _, s := range seeds {
		all = append(all, s.known)
	}
	if err := saveKnown(cfg.Dir, all); err != nil {
		t.Fatal(err)
	}
	if m.members, err = NewMembers(cfg); err != nil {
		t.Fatal(err)
	}
	m.keepers = NewKeepers(m.port, m.members, testLog(t).With("at", id.Name()))
	m.keepers.patience = patience
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	for _, run := range []func(context.Context) error{m.port.Run, m.members.Run, m.keepers.Run} {
		go func() { ended <- run(ctx) }()
	}
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
	t.Cleanup(m.stop)
	return m
}

func (m *machine) sees(name string, want State) func() bool {
	return func() bool {
		x, ok := m.members.Member(name)
		return ok && x.State == want
	}
}

// A peer whose address leads nowhere is a peer like the others, to those whom it can dial.
func TestPeerThatCannotBeDialled(t *testing.T) {
	id := newIdentity(t, "a")
	a := start(t, id, false)
	b := start(t, joinIdentity(t, id, "b"), false, a)
	c := start(t, joinIdentity(t, id, "c"), true, a)
	echo(t, c.port.Listener(ProtocolRaft))
	for _, m := range []*machine{a, b, c} {
		for _, other := range []string{"a", "b", "c"} {
			eventually(t, 20*time.Second, m.name+" sees "+other, m.sees(other, StateAlive))
		}
	}
	for _, m := range []*machine{a, b} {
		eventually(t, 20*time.Second, m.name+" is kept a connection to", func() bool {
			met := c.keepers.Meeting(m.name)
			return m.port.Linked("c") && !met.Kept.IsZero() && met.Undialled != "" && met.Err == nil
		})
		eventually(t, 20*time.Second, "all know who is hidden", func() bool {
			hidden := ""
			for _, x := range m.members.Snapshot() {
				if x.Hidden {
					hidden += x.Name
				}
			}
			return hidden == "c"
		})
		conn, err := m.port.Dial(t.Context(), "c", ProtocolRaft)
		if err != nil {
			t.Fatal(err)
		}
		if said, err := readLine(conn); err != nil || said != m.name {
			t.Errorf("c takes %s for %q: %v", m.name, said, err)
		}
		conn.Close()
		eventually(t, 20*time.Second, "its probes are answered", func() bool {
			x, ok := m.members.Member("c")
			return ok && x.RTT > 0
		})
	}
	eventually(t, 20*time.Second, "all have been asked", func() bool {
		return a.keepers.Meeting("b") == Meeting{Asked: true} && b.keepers.Meeting("a") == Meeting{Asked: true}
	})
	for _, m := range []*machine{a, b, c} {
		m.linked.Range(func(name, _ any) bool {
			if name != "c" {
				t.Errorf("%s kept a connection to %s, which can dial it", name, m.name)
			}
			return true
		})
	}

	// Away and met again, as after a cut: what is on its way over the old connection may be late. And
	// a may have been restarted, which knows of no answer then.
	time.Sleep(4 * time.Second) // by then c asks so seldom that only being met makes it ask again in time
	before, met := c.keepers.Meeting("a").Kept, c.members.table
	a.port.mu.Lock()
	clear(a.port.sights)
	a.port.mu.Unlock()
	if x, _ := met.get("a"); x.State.Up() {
		met.gone("a", time.Now())
		met.heard("a", netip.AddrPortFrom(x.Address, x.GossipPort), meta{Port: x.Port, Key: x.Fingerprint, Started: x.Started.Unix()}, time.Now())
	}
	eventually(t, 20*time.Second, "a new connection is kept", func() bool {
		hidden, _ := a.port.Hidden("c")
		return c.keepers.Meeting("a").Kept.After(before) && a.port.Linked("c") && hidden
	})

	c.stop()
	began := time.Now()
	for _, m := range []*machine{a, b} {
		eventually(t, 20*time.Second, m.name+" sees the death", m.sees("c", StateDead))
		eventually(t, 20*time.Second, "the connection is gone", func() bool { return !m.port.Linked("c") })
	}
	t.Logf("death known everywhere after %v", time.Since(began))
}

// While the first answer takes long, a connection is kept.
func TestSlowAnswer(t *testing.T) {
	id := newIdentity(t, "a")
	a := start(t, id, false)
	for range maxReaches { // the question waits
		a.port.reaches <- struct{}{}
	}
	b := startPatient(t, joinIdentity(t, id, "b"), false, time.Millisecond, a)
	eventually(t, 20*time.Second, "b keeps a connection", func() bool { return a.port.Linked("b") })
	if b.keepers.Meeting("a").Asked {
		t.Error("there was an answer")
	}
	for range maxReaches {
		<-a.port.reaches
	}
	eventually(t, 30*time.Second, "b keeps none any more", func() bool { return b.keepers.Meeting("a") == Meeting{Asked: true} && !a.port.Linked("b") })
}

// A peer is hidden after several answers in a row, and not from those that are away.
func TestOneSlowAnswerHidesNobody(t *testing.T) {
	p := startPort(t, newIdentity(t, "a"), PortConfig{})
	for i, c := range []struct{ reached, hidden, known bool }{
		{false, false, false}, {false, false, false}, {true, false, true}, // a bad start
		{false, false, true}, {false, false, true}, {false, true, true}, {false, true, true}, {true, false, true},
	} {
		p.reached("b", c.reached)
		if hidden, known := p.Hidden("b"); hidden != c.hidden || known != c.known {
			t.Errorf("after answer %d: hidden %t, known %t", i, hidden, known)
		}
	}
	no, yes := Meeting{Asked: true, Undialled: "timeout"}, Meeting{Asked: true}
	for _, c := range []struct {
		peers []*kept
		want  bool
	}{
		{nil, false},
		{[]*kept{{up: true}}, false},
		{[]*kept{{up: true, Meeting: no}}, true},
		{[]*kept{{up: true, Meeting: no}, {up: true, Meeting: yes}}, false},
		{[]*kept{{up: false, Meeting: no}, {up: false, Meeting: no}, {up: true, Meeting: yes}}, false},
		{[]*kept{{up: true, Meeting: no}, {up: false, Meeting: yes}}, true},
	} {
		k := NewKeepers(nil, nil, nil)
		for i, s := range c.peers {
			k.peers[string(rune('a'+i))] = s
		}
		if got := k.hidden(); got != c.want {
			t.Errorf("hidden %t from %v", got, c.peers)
		}
	}
}

// A peer is not a scanner for another one.
func TestQuestionsAreRefused(t *testing.T) {
	p := startPort(t, newIdentity(t, "a"), PortConfig{})
	for _, c := range []struct {
		address, from string
		want          bool
	}{
		{"192.168.1.2", "192.168.1.3", true}, {"10.0.0.2", "1.2.3.4", true}, {"2001:db8::1", "2001:db8::2", true},
		{"127.0.0.1", "127.0.0.1", true}, {"127.0.0.1", "192.168.1.3", false}, {"::1", "2001:db8::2", false},
		{"0.0.0.0", "127.0.0.1", false}, {"224.0.0.1", "192.168.1.3", false}, {"169.254.169.254", "192.168.1.3", false}, {"169.254.1.2", "169.254.1.3", true},
		{"10.42.1.2", "192.168.1.3", false}, {"10.43.0.1", "192.168.1.3", false},
	} {
		if got := p.dialable(netip.MustParseAddr(c.address), netip.MustParseAddr(c.from)); got != c.want {
			t.Errorf("%s asks about %s: %t", c.from, c.address, got)
		}
	}
	if p.dialable(netip.Addr{}, netip.MustParseAddr("192.168.1.3")) {
		t.Error("no address can be dialled")
	}
	for want, err := range map[string]error{"refused": &net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "no answer": context.DeadlineExceeded, "somebody else answers there": io.EOF, "not an address of a peer": errNotAsked} {
		if got := reason(err); got != want {
			t.Errorf("%v is told as %q", err, got)
		}
	}
}

// An older Rookery knows nothing of all this, and is met as ever.
func TestOlderPeerIsMetAsEver(t *testing.T) {
	id := newIdentity(t, "a")
	a := start(t, id, false)
	a.port.tls.NextProtos = []string{ProtocolRaft, ProtocolStore, "h2", "http/1.1"}
	b := start(t, joinIdentity(t, id, "b"), true, a)
	eventually(t, 20*time.Second, "b has tried", func() bool { return b.keepers.Meeting("a") == Meeting{Asked: true} })
}

// A peer that can be dialled again is, and what runs over the kept connection goes on.
func TestKeptConnectionIsRetired(t *testing.T) {
	id := newIdentity(t, "a")
	a := start(t, id, false)
	b := start(t, joinIdentity(t, id, "b"), false, a)
	echo(t, b.port.Listener(ProtocolRaft))
	eventually(t, 20*time.Second, "b has been found to be dialled", func() bool {
		return a.sees("b", StateAlive)() && b.keepers.Meeting("a") == Meeting{Asked: true} && !a.port.Linked("b")
	})
	link, err := b.port.dialDirect(t.Context(), "a", protocolLink)
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := reverse.NewKeeper(link, handler{t.Context(), b.keepers}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- keeper.Run(t.Context()) }()
	eventually(t, 20*time.Second, "a is kept a connection to", func() bool { return a.port.Linked("b") })
	over, err := a.port.Dial(t.Context(), "b", ProtocolRaft)
	if err != nil {
		t.Fatal(err)
	}
	keeper.Retire()
	eventually(t, 20*time.Second, "a dials b directly", func() bool {
		conn, err := a.port.Dial(t.Context(), "b", ProtocolRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return !a.port.Linked("b")
	})
	if said, err := readLine(over); err != nil || said != "a" {
		t.Errorf("what ran over the connection was cut: %q, %v", said, err)
	}
	over.Close()
	select {
	case err = <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the connection outlived its last stream")
	}
	if err != nil {
		t.Errorf("the connection that ended with its last stream was lost: %v", err)
	}
}

// Only peers keep connections, each its own, and a removed one none.
func TestKeptConnectionsAreRefused(t *testing.T) {
	id := newIdentity(t, "a")
	b := joinIdentity(t, id, "b")
	removed := make(chan struct{})
	allowed := func(_, fp string) bool {
		select {
		case <-removed:
			return fp != b.Fingerprint()
		default:
			return true
		}
	}
	p := startPort(t, id, PortConfig{Allowed: allowed})
	// link returns a connection over which something has come, as it does from who takes it.
	link := func(cert *tls.Certificate) (*tls.Conn, error) {
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocolLink}}
		if cert != nil {
			conf.Certificates = []tls.Certificate{*cert}
		}
		conn, err := tls.Dial("tcp", p.Addr().String(), conf)
		if err == nil { // in TLS 1.3 the refusal comes with the first read
			t.Cleanup(func() { conn.Close() })
			_, err = readLine(conn)
		}
		return conn, err
	}
	if _, err := link(newIdentity(t, "b").Certificate()); err == nil {
		t.Error("a peer of another cluster keeps a connection")
	}
	if _, err := link(nil); err == nil {
		t.Error("somebody without a certificate keeps a connection")
	}
	first, err := link(b.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := link(b.Certificate()); err != nil {
		t.Fatal(err)
	}
	if err := first.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, first); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the older of two connections was left open")
	}
	if !p.Linked("b") {
		t.Error("the newer of two connections does not count")
	}
	close(removed)
	p.Recheck()
	eventually(t, 20*time.Second, "a removed peer's connection is closed", func() bool { return !p.Linked("b") })
}

// brokenLinks are connections that are kept, over which nothing can be opened.
type brokenLinks struct{ err error }

func (brokenLinks) Linked(string) bool { return true }

func (brokenLinks) SendLinked(string, []byte) bool { return true }

func (l brokenLinks) DialLinked(ctx context.Context, _ string, _ reverse.Kind) (net.Conn, error) {
	if l.err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, l.err
}

// Gossip dials a peer whose kept connection ends, and waits for no stuck one.
func TestGossipOverBrokenLinks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := memberlist.Address{Addr: l.Addr().String(), Name: "b"}
	conn, err := (&transport{links: brokenLinks{reverse.ErrRetired}}).DialAddressTimeout(to, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := (&transport{links: brokenLinks{}}).DialAddressTimeout(to, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stuck connection ended with %v", err)
	}
}

// Bulk data does not wait in the kernel in front of gossip's packets, and a connection ends whose
// other end is not heard.
func TestOptionsOfConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(shortenQueue(conn), notForever(conn)); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for option, want := range map[int]int{unix.TCP_NOTSENT_LOWAT: notSent, unix.TCP_USER_TIMEOUT: int(unheard.Milliseconds())} {
			if n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || n != want {
				t.Errorf("option %d is %d, want %d: %v", option, n, want, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}
