package userwg

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// lan carries datagrams between devices of one process, in the time of a synctest bubble.
type lan struct {
	t *testing.T
	// delay is that of each datagram, in which it cannot overtake one to the same end.
	delay time.Duration
	// lose tells which are lost; nil: none.
	lose func(from, to netip.AddrPort, b []byte) bool

	mu      sync.Mutex
	ends    map[netip.AddrPort]*wire
	carried map[uint32]int // by the type of WireGuard's message
	// kept are peers whose queues a finalizer would drain outside of the bubble.
	kept []*device.Peer
}

func newLAN(t *testing.T, delay time.Duration) *lan {
	return &lan{t: t, delay: delay, ends: map[netip.AddrPort]*wire{}, carried: map[uint32]int{}}
}

// leaked holds what must not be collected.
var leaked []*lan

type datagram struct {
	from netip.AddrPort
	b    []byte
}

// wire is the socket of one device.
type wire struct {
	lan    *lan
	at     netip.AddrPort
	in     chan datagram
	closed chan struct{}
}

type wireEnd netip.AddrPort

func (wireEnd) ClearSrc()             {}
func (wireEnd) SrcToString() string   { return "" }
func (e wireEnd) DstToString() string { return netip.AddrPort(e).String() }
func (e wireEnd) DstToBytes() []byte  { b, _ := netip.AddrPort(e).MarshalBinary(); return b }
func (e wireEnd) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (wireEnd) SrcIP() netip.Addr     { return netip.Addr{} }

func (w *wire) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	in, closed := make(chan datagram, 1024), make(chan struct{})
	w.lan.mu.Lock()
	defer w.lan.mu.Unlock()
	w.in, w.closed = in, closed
	w.lan.ends[w.at] = w
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case d := <-in:
			sizes[0], eps[0] = copy(bufs[0], d.b), wireEnd(d.from)
			return 1, nil
		}
	}}, port, nil
}

func (w *wire) Close() error {
	w.lan.mu.Lock()
	defer w.lan.mu.Unlock()
	if w.closed != nil {
		close(w.closed)
		w.closed = nil
	}
	if w.lan.ends[w.at] == w {
		delete(w.lan.ends, w.at)
	}
	return nil
}

func (w *wire) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		w.lan.carry(w.at, netip.AddrPort(ep.(wireEnd)), append([]byte(nil), b...))
	}
	return nil
}

func (*wire) SetMark(uint32) error { return nil }
func (*wire) BatchSize() int       { return 1 }

func (*wire) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	return wireEnd(at), err
}

func (l *lan) carry(from, to netip.AddrPort, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.carried[uint32(b[0])]++
	if l.lose != nil && l.lose(from, to, b) {
		return
	}
	time.AfterFunc(l.delay, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if w := l.ends[to]; w != nil {
			select {
			case w.in <- datagram{from, b}:
			default:
				l.t.Error("a socket is full")
			}
		}
	})
}

// sent is how many messages of a type there were.
func (l *lan) sent(kind uint32) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.carried[kind]
}

// messages is how many there were of any type.
func (l *lan) messages() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, of := range l.carried {
		n += of
	}
	return n
}

// machine is one whose daemon can end and begin.
type machine struct {
	lan  *lan
	name string
	addr netip.Addr   // of the machine
	net  netip.Prefix // of its pods
	key  wgtypes.Key
	// silent: the others are not greeted
	silent bool

	w   wireGuard
	tun *tuntest.ChannelTUN
	got chan []byte
}

const testPort = 51820

func (l *lan) machine(n int) *machine {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		l.t.Fatal(err)
	}
	return &machine{
		lan: l, name: fmt.Sprint("h", n), key: key, addr: netip.AddrFrom4([4]byte{192, 168, 77, byte(n)}),
		net: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n), 0}), 24),
	}
}

func (m *machine) start() {
	m.tun, m.got = tuntest.NewChannelTUN(), make(chan []byte, 1024)
	bind := &wire{lan: m.lan, at: netip.AddrPortFrom(m.addr, testPort)}
	g, err := newGreeter(m.tun.TUN(), bind, m.key, slog.New(slog.DiscardHandler))
	if err != nil {
		m.lan.t.Fatal(err)
	}
	m.w = wireGuard{g}
	if err := g.dev.Up(); err != nil {
		m.lan.t.Fatal(err)
	}
	t, got, gone := m.tun, m.got, g.dev.Wait()
	go func() {
		for {
			select {
			case b := <-t.Inbound:
				got <- b
			case <-gone:
				return
			}
		}
	}()
}

func (m *machine) stop() { m.w.greeter.close() }

// add is what gossip's word on another peer leads to.
func (m *machine) add(o *machine) {
	err := m.w.set(Peer{
		Key: o.key.PublicKey(), Endpoint: netip.AddrPortFrom(o.addr, testPort), AllowedIPs: []netip.Prefix{o.net}, Greet: !m.silent,
	})
	if err != nil {
		m.lan.t.Fatal(err)
	}
	m.lan.mu.Lock()
	defer m.lan.mu.Unlock()
	m.lan.kept = append(m.lan.kept, m.w.greeter.dev.LookupPeer(device.NoisePublicKey(o.key.PublicKey())))
}

// ping sends a packet from the machine's first address to another's.
func (m *machine) ping(o *machine) {
	m.tun.Outbound <- tuntest.Ping(o.net.Addr(), m.net.Addr())
}

// bubble runs f in virtual time.
func bubble(t *testing.T, delay time.Duration, f func(t *testing.T, l *lan)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, delay)
		leaked = append(leaked, l)
		f(t, l)
	})
}

// arrives waits until what m sends is heard by o, and says how long that took.
func (m *machine) arrives(o *machine) time.Duration {
	start := time.Now()
	m.ping(o)
	select {
	case <-o.got:
	case <-time.After(time.Minute):
		m.lan.t.Errorf("nothing from %s has come to %s within a minute", m.name, o.name)
	}
	return time.Since(start)
}

// Daemons start within 2 s, and each hears of the other at another time. As soon as both
// know each other what they send arrives, although both send at once.
func TestFirstContact(t *testing.T) {
	var longest time.Duration
	for range 200 {
		bubble(t, rand.N(50*time.Millisecond), func(t *testing.T, l *lan) {
			a, b := l.machine(1), l.machine(2)
			var known, heard sync.WaitGroup
			for _, pair := range [][2]*machine{{a, b}, {b, a}} {
				known.Go(func() {
					time.Sleep(rand.N(2 * time.Second))
					pair[0].start()
					time.Sleep(rand.N(2 * time.Second))
					pair[0].add(pair[1])
				})
			}
			known.Wait()
			took := make([]time.Duration, 2)
			heard.Go(func() { took[0] = a.arrives(b) })
			heard.Go(func() { took[1] = b.arrives(a) })
			heard.Wait()
			longest = max(longest, took[0], took[1])
			a.stop()
			b.stop()
		})
	}
	t.Logf("the longest first packet took %s", longest)
	if longest > 3*time.Second {
		t.Errorf("the first packet took %s", longest)
	}
}

// pair is two machines with a session.
func (l *lan) pair() (a, b *machine) {
	a, b = l.machine(1), l.machine(2)
	a.start()
	b.start()
	a.add(b)
	b.add(a)
	time.Sleep(5 * time.Second)
	return a, b
}

// A greeting leads to a session without anything to send, and then there is silence.
func TestGreetingEnds(t *testing.T) {
	bubble(t, time.Millisecond, func(t *testing.T, l *lan) {
		a, b := l.pair()
		for _, m := range []*machine{a, b} {
			for peer, s := range m.w.greeter.sessions() {
				if !s.usable() {
					t.Errorf("%s has no session with %x: %+v", m.name, peer, s)
				}
			}
		}
		if n := l.sent(device.MessageInitiationType); n != 1 {
			t.Errorf("%d handshakes were begun, although they began at the same time", n)
		}
		before := l.messages()
		time.Sleep(time.Hour)
		if now := l.messages(); now != before {
			t.Errorf("idle devices have sent %d messages", now-before)
		}
		a.stop()
		b.stop()
	})
}

// Who does not answer is left alone in the end.
func TestGreetingGivesUp(t *testing.T) {
	bubble(t, time.Millisecond, func(t *testing.T, l *lan) {
		a, nobody := l.machine(1), l.machine(2)
		a.start()
		a.add(nobody)
		time.Sleep(10 * time.Minute)
		before := l.messages()
		if before < maxTries || before > 40 {
			t.Errorf("%d initiations were sent to nobody", before)
		}
		time.Sleep(time.Hour)
		if now := l.messages(); now != before {
			t.Errorf("%d messages were sent to nobody an hour later", now-before)
		}
		a.stop()
	})
}

// Who has answered nothing is known by that until it does; silence alone says nothing.
func TestWhoDoesNotAnswerIsKnown(t *testing.T) {
	bubble(t, time.Millisecond, func(t *testing.T, l *lan) {
		a, b := l.pair()
		silent := func(want bool) {
			t.Helper()
			for _, m := range []*machine{a, b} {
				keys, err := m.w.greeter.inVain()
				if err != nil || m == b && len(keys) > 0 || m == a && (len(keys) == 1) != want {
					t.Errorf("%s has had no answer from %v, %v; want one by the first: %v", m.name, keys, err, want)
				}
			}
		}
		silent(false)
		time.Sleep(time.Hour)
		silent(false)
		l.lose = func(netip.AddrPort, netip.AddrPort, []byte) bool { return true }
		a.ping(b)
		time.Sleep(5 * time.Second)
		silent(false)
		time.Sleep(time.Minute)
		silent(true)
		time.Sleep(time.Hour)
		silent(true)
		l.lose = nil
		a.arrives(b)
		silent(false)
		time.Sleep(time.Hour)
		silent(false)
		a.stop()
		b.stop()
	})
}

// Who answers, and is not heard, finds out as well: WireGuard begins no handshake of its own
// while it answers those of the other.
func TestWhoIsNotHeardKnows(t *testing.T) {
	for range 20 { // the keys differ, and so does who speaks first
		bubble(t, time.Millisecond, func(t *testing.T, l *lan) {
			a, b := l.machine(1), l.machine(2)
			l.lose = func(from, _ netip.AddrPort, _ []byte) bool { return from.Addr() == b.addr }
			a.start()
			b.start()
			b.add(a)
			time.Sleep(rand.N(firstWord)) // it may leave the word to a
			a.add(b)
			time.Sleep(time.Minute)
			for _, m := range []*machine{a, b} {
				if keys, err := m.w.greeter.inVain(); err != nil || len(keys) != 1 {
					t.Errorf("%s knows of %v that they do not answer, %v", m.name, keys, err)
				}
			}
			l.lose = nil
			a.arrives(b)
			b.arrives(a)
			for _, m := range []*machine{a, b} {
				if keys, err := m.w.greeter.inVain(); err != nil || len(keys) > 0 {
					t.Errorf("%s says that %v do not answer, %v", m.name, keys, err)
				}
			}
			a.stop()
			b.stop()
		})
	}
}

// Initiations that cross, long after the last session, are not left to WireGuard's 5 s.
func TestCrossedHandshakes(t *testing.T) {
	for range 20 {
		bubble(t, 10*time.Millisecond, func(t *testing.T, l *lan) {
			a, b := l.pair()
			time.Sleep(time.Hour)
			before := l.sent(device.MessageInitiationType)
			var heard sync.WaitGroup
			for _, pair := range [][2]*machine{{a, b}, {b, a}} {
				heard.Go(func() {
					if took := pair[0].arrives(pair[1]); took > time.Second {
						t.Errorf("what was sent arrived after %s", took)
					}
				})
			}
			heard.Wait()
			if crossed := l.sent(device.MessageInitiationType) - before; crossed < 3 {
				t.Errorf("%d initiations: they have not crossed", crossed)
			}
			a.stop()
			b.stop()
		})
	}
}

// A handshake that was begun too early spoils the one that this end has just answered: that
// is confirmed, but nothing can be sent by it.
func TestSpoiltSession(t *testing.T) {
	for range 20 { // the keys differ, and so does who speaks first
		bubble(t, 60*time.Millisecond, func(t *testing.T, l *lan) {
			a, b := l.machine(1), l.machine(2)
			a.silent, b.silent = true, true
			a.start()
			b.start()
			a.add(b)
			b.add(a)
			var lost atomic.Bool
			l.lose = func(from, _ netip.AddrPort, m []byte) bool {
				return from.Addr() == a.addr && m[0] == device.MessageInitiationType && lost.CompareAndSwap(false, true)
			}
			b.ping(a)
			time.Sleep(65 * time.Millisecond) // a has answered
			a.w.greeter.mu.Lock()
			a.w.greeter.peers[b.key.PublicKey()] = &greeting{}
			a.w.greeter.mu.Unlock()
			a.w.greeter.repeat(b.key.PublicKey())
			time.Sleep(time.Second)
			if !lost.Load() {
				t.Error("no handshake was begun too early")
			}
			if took := a.arrives(b); took > time.Second {
				t.Errorf("what was sent arrived after %s", took)
			}
			a.stop()
			b.stop()
		})
	}
}

// A daemon that has restarted is reached by the others, whether it greets itself, or cannot
// because its clock has gone back, or its address has changed, or gossip is late.
func TestRestartedDaemon(t *testing.T) {
	for _, c := range []struct {
		name    string
		silent  bool // the restarted daemon does not greet
		clock   bool // its clock has gone back
		moved   bool
		unheard bool // the others have not heard that it restarted
	}{
		{name: "both greet"}, {name: "it is silent", silent: true}, {name: "its clock has gone back", clock: true},
		{name: "it has moved", moved: true}, {name: "it is silent and has moved", silent: true, moved: true}, {name: "gossip is late", unheard: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 10 { // the keys differ, and so does who speaks first
				bubble(t, time.Millisecond, func(t *testing.T, l *lan) {
					a, b := l.pair()
					a.arrives(b)
					b.stop()
					a.ping(b) // into the session that was
					if c.clock {
						setLastTimestamp(a.w.greeter.dev.LookupPeer(device.NoisePublicKey(b.key.PublicKey())), 0xff)
					}
					if c.moved {
						b.addr = netip.MustParseAddr("192.168.77.99")
					}
					time.Sleep(rand.N(3 * time.Second))
					b.start()
					b.silent = c.silent
					b.add(a)
					if c.unheard {
						time.Sleep(time.Second)
					} else {
						time.Sleep(rand.N(time.Second))
						at := a.w.greeter.sessions()[b.key.PublicKey()].endpoint
						if err := a.w.remake(b.key.PublicKey()); err != nil {
							t.Error(err)
						}
						if now := a.w.greeter.sessions()[b.key.PublicKey()].endpoint; now != at {
							t.Errorf("heard at %q, and now sent to %q", at, now)
						}
						a.add(b)
					}
					if took := a.arrives(b); took > time.Second {
						t.Errorf("what was sent arrived after %s", took)
					}
					a.stop()
					b.stop()
				})
			}
		})
	}
}

// setLastTimestamp makes the highest time stamp of a handshake that was seen of a peer one of
// the far future, as if the peer had been there.
func setLastTimestamp(p *device.Peer, first byte) {
	stamp := reflect.ValueOf(p).Elem().FieldByName("handshake").FieldByName("lastTimestamp")
	*(*byte)(stamp.Addr().UnsafePointer()) = first
}

func TestParseSessions(t *testing.T) {
	key := strings.Repeat("ab", 32)
	got, err := parseSessions("private_key=" + key + "\nlisten_port=51820\npublic_key=" + key + "\nendpoint=192.168.77.2:51820\n" +
		"last_handshake_time_sec=7\nlast_handshake_time_nsec=8\nallowed_ip=10.42.2.0/24\n")
	if err != nil {
		t.Fatal(err)
	}
	if s := got[wgtypes.Key(bytes.Repeat([]byte{0xab}, 32))]; len(got) != 1 || s.endpoint != "192.168.77.2:51820" || !s.agreed.Equal(time.Unix(7, 8)) {
		t.Errorf("read %+v", got)
	}
	if got, err := parseSessions("listen_port=51820\n"); len(got) != 0 || err != nil {
		t.Errorf("of a device without peers: %+v, %v", got, err)
	}
	for _, text := range []string{"public_key=abc\n", "public_key=" + key + "\nlast_handshake_time_sec=x\n"} {
		if _, err := parseSessions(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
