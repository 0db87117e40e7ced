package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// answering is an upstream that gives every A question this address, and counts.
func answering(t *testing.T, ip string, asked *atomic.Int32) string {
	return upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		asked.Add(1)
		resp := new(dns.Msg).SetReply(req)
		rr, _ := dns.NewRR(req.Question[0].Name + " 60 IN A " + ip)
		resp.Answer = []dns.RR{rr}
		_ = w.WriteMsg(resp)
	})
}

// ownAddr is a free port at a loopback address of this process alone: on 127.0.0.1 somebody
// else may get the port, and answer.
func ownAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	own := netip.AddrFrom4([4]byte{127, 1 + byte(os.Getpid()>>8)%250, byte(os.Getpid()), 2})
	return netip.AddrPortFrom(own, freeAddr(t).Port())
}

func TestConditionalForwarding(t *testing.T) {
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{answering(t, "192.0.2.1", &n)}
	cfg.Forward = map[string][]string{
		"corp.example":         {ownAddr(t).String(), answering(t, "192.0.2.2", &n)}, // the first is down
		"dmz.Corp.example":     {answering(t, "192.0.2.3", &n)},
		"168.192.in-addr.arpa": {answering(t, "192.0.2.4", &n)},
	}
	s := testServer(t, cfg)
	for name, want := range map[string]string{
		"example.com.": "192.0.2.1", "xcorp.example.": "192.0.2.1", "corp.example.": "192.0.2.2", "a.b.corp.example.": "192.0.2.2",
		"a.dmz.corp.example.": "192.0.2.3", "A.DMZ.corp.example.": "192.0.2.3", "7.1.168.192.in-addr.arpa.": "192.0.2.4",
	} {
		resp := s.handle(t.Context(), inside(), question(name+" A"))
		equal(t, name, text(resp.Answer), []string{name + " 60 IN A " + want})
	}
}

// An answer that is over its TTL is better than none, whether nobody answers or only says SERVFAIL.
func TestServeStale(t *testing.T) {
	var broken atomic.Bool
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		n.Add(1)
		resp := new(dns.Msg).SetReply(req)
		if broken.Load() {
			resp.Rcode = dns.RcodeServerFailure
		} else {
			rr, _ := dns.NewRR("example.com. 60 IN A 192.0.2.80")
			resp.Answer = []dns.RR{rr}
		}
		_ = w.WriteMsg(resp)
	})}
	s := testServer(t, cfg)
	now := time.Unix(1000, 0)
	s.forward.cache.now = func() time.Time { return now }
	ask := func(want string, asked int32) {
		t.Helper()
		resp := s.handle(t.Context(), inside(), question("example.com. A"))
		equal(t, "answer", text(resp.Answer), []string{"example.com. " + want + " IN A 192.0.2.80"})
		if got := n.Load(); got != asked {
			t.Errorf("asked %d times, want %d", got, asked)
		}
	}
	ask("60", 1)
	broken.Store(true)
	now = now.Add(2 * time.Minute)
	ask("30", 2)
	ask("30", 2) // left alone for a while
	now = now.Add(staleRetry)
	ask("30", 3)
	broken.Store(false)
	now = now.Add(staleRetry)
	ask("60", 4)
}

// silent is an upstream that takes questions and never answers one.
func silent(t *testing.T, asked *atomic.Int32) string {
	return upstream(t, func(dns.ResponseWriter, *dns.Msg) { asked.Add(1) })
}

// A server that says nothing is waited for once, then asked last.
func TestASilentUpstreamIsAskedLast(t *testing.T) {
	var quiet, good atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{silent(t, &quiet), answering(t, "192.0.2.80", &good)}
	s := testServer(t, cfg)
	for _, name := range []string{"a.example.", "b.example.", "c.example."} {
		resp := s.handle(t.Context(), inside(), question(name+" A"))
		equal(t, name, text(resp.Answer), []string{name + " 60 IN A 192.0.2.80"})
	}
	if q, g := quiet.Load(), good.Load(); q != 1 || g != 3 {
		t.Errorf("the silent one was asked %d times, the other one %d", q, g)
	}
}

// While nobody upstream answers, a question fails at once, but for one now and then; it is said when that
// begins and when it ends.
func TestUpstreamsThatAreAway(t *testing.T) {
	at := ownAddr(t)
	cfg := testConfig(t)
	cfg.Upstreams = []string{at.String()}
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s := testServer(t, cfg)
	now := time.Unix(1000, 0)
	s.forward.now = func() time.Time { return now }
	ask := func(name string) error {
		t.Helper()
		msg, err := s.forward.ask(t.Context(), question(name+".example. A"))
		if err == nil {
			equal(t, name, text(msg.Answer), []string{name + ".example. 60 IN A 192.0.2.80"})
		}
		return err
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := ask(name); err == nil || errors.Is(err, errAway) {
			t.Fatalf("%s: %v, want that it was asked for", name, err)
		}
	}
	for _, name := range []string{"d", "e"} {
		if err := ask(name); !errors.Is(err, errAway) {
			t.Errorf("%s: %v, want %v", name, err, errAway)
		}
	}
	now = now.Add(probeEvery)
	if err := ask("f"); err == nil || errors.Is(err, errAway) {
		t.Errorf("after a while: %v, want that it was asked for", err)
	}
	if err := ask("g"); !errors.Is(err, errAway) {
		t.Errorf("and right after that: %v, want %v", err, errAway)
	}
	if said := log.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, at.String()) || strings.Contains(said, "level=INFO") {
		t.Errorf("said: %s", said)
	}
	pc, err := net.ListenPacket("udp", at.String())
	must(t, err)
	// The name that is asked for is not among those that it knows: it is heard of by a question of our own.
	var dead atomic.Int32
	run(t, &dns.Server{PacketConn: pc, Handler: picky(func(name string) bool { return name == "dead.example." }, &dead)})
	now = now.Add(probeEvery)
	if err := ask("dead"); err == nil || errors.Is(err, errAway) || dead.Load() != 1 {
		t.Errorf("a silent name: %v, want that it was asked for", err)
	}
	for _, name := range []string{"h", "i"} {
		must(t, ask(name))
	}
	if said := log.String(); strings.Count(said, "level=WARN") != 1 || strings.Count(said, "level=INFO") != 1 {
		t.Errorf("said: %s", said)
	}
}

// Who has an old answer gives it before the client loses its patience with a silent upstream.
func TestServeStaleOnSilence(t *testing.T) {
	var quiet atomic.Bool
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		n.Add(1)
		if quiet.Load() {
			return
		}
		resp := new(dns.Msg).SetReply(req)
		rr, _ := dns.NewRR("example.com. 60 IN A 192.0.2.80")
		resp.Answer = []dns.RR{rr}
		_ = w.WriteMsg(resp)
	})}
	s := testServer(t, cfg)
	now := time.Unix(1000, 0)
	s.forward.cache.now = func() time.Time { return now }
	s.handle(t.Context(), inside(), question("example.com. A"))
	quiet.Store(true)
	now = now.Add(2 * time.Minute)
	begin := time.Now()
	resp := s.handle(t.Context(), inside(), question("example.com. A"))
	equal(t, "answer", text(resp.Answer), []string{"example.com. 30 IN A 192.0.2.80"})
	t.Logf("the old answer came after %s", time.Since(begin))
	// It is the own timer that ended the wait, not the one for an upstream.
	if took := time.Since(begin); took < renewTimeout || renewTimeout >= askTimeout {
		t.Errorf("the old answer came after %s: the upstream was not waited for", took)
	}
	resp = s.handle(t.Context(), inside(), question("example.com. A"))
	equal(t, "answer again", text(resp.Answer), []string{"example.com. 30 IN A 192.0.2.80"})
	if got := n.Load(); got != 2 {
		t.Errorf("asked %d times, want 2: the silent one is left alone for a while", got)
	}
}

// What does not fit is asked for again by tcp, and given to the client as far as that can take it.
func TestTruncatedUpstreamIsAskedByTCP(t *testing.T) {
	var byUDP, byTCP atomic.Int32
	whole := func(w dns.ResponseWriter, req *dns.Msg) {
		byTCP.Add(1)
		resp := new(dns.Msg).SetReply(req)
		for i := range 200 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 192.0.2.%d", req.Question[0].Name, i))
			resp.Answer = append(resp.Answer, rr)
		}
		_ = w.WriteMsg(resp)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(ownAddr(t).Addr(), 0).String())
	must(t, err)
	stop := run(t, &dns.Server{Listener: l, Handler: dns.HandlerFunc(whole)})
	pc, err := net.ListenPacket("udp", l.Addr().String())
	must(t, err)
	run(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		byUDP.Add(1)
		resp := new(dns.Msg).SetReply(req)
		resp.Truncated = true
		_ = w.WriteMsg(resp)
	})})
	cfg := testConfig(t)
	cfg.Upstreams = []string{l.Addr().String()}
	s := testServer(t, cfg)
	client := netip.MustParseAddr("10.42.0.7")
	req := question("big.example. A")
	if resp := s.respond(t.Context(), client, "tcp", req); len(resp.Answer) != 200 || resp.Truncated {
		t.Errorf("by tcp: %d records, truncated %v", len(resp.Answer), resp.Truncated)
	}
	if resp := s.respond(t.Context(), client, "udp", req); !resp.Truncated || resp.Len() > dns.MinMsgSize {
		t.Errorf("by udp: %d bytes, truncated %v", resp.Len(), resp.Truncated)
	}
	if u, c := byUDP.Load(), byTCP.Load(); u != 1 || c != 1 {
		t.Errorf("asked %d times by udp and %d by tcp, want once each", u, c)
	}
	// One that cannot be asked by tcp has no answer; the next one may.
	stop()
	var good atomic.Int32
	cfg.Upstreams = []string{l.Addr().String(), answering(t, "192.0.2.81", &good)}
	resp := testServer(t, cfg).handle(t.Context(), inside(), question("other.example. A"))
	equal(t, "the second one", text(resp.Answer), []string{"other.example. 60 IN A 192.0.2.81"})
}

// A hundred clients that ask the same at once are one question upstream.
func TestOneQuestionForAll(t *testing.T) {
	var n atomic.Int32
	release := make(chan struct{})
	cfg := testConfig(t)
	cfg.Upstreams = []string{upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		n.Add(1)
		<-release
		resp := new(dns.Msg).SetReply(req)
		rr, _ := dns.NewRR("example.com. 60 IN A 192.0.2.80")
		resp.Answer = []dns.RR{rr}
		_ = w.WriteMsg(resp)
	})}
	s := testServer(t, cfg)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 100 {
		wg.Go(func() {
			if i == 0 { // the one that came first leaves early
				s.handle(ctx, inside(), question("example.com. A"))
				return
			}
			poll(t, func() bool { return n.Load() > 0 })
			if resp := s.handle(t.Context(), inside(), question("example.com. A")); len(resp.Answer) != 1 {
				t.Errorf("got %v", resp)
			}
		})
	}
	poll(t, func() bool { return n.Load() == 1 })
	cancel()
	close(release)
	wg.Wait()
	if got := n.Load(); got != 1 {
		t.Errorf("asked %d times", got)
	}
}

// A panic while upstream is asked is an answer to those who wait, and the next question is asked anew.
func TestPanicUpstreamIsAnsweredWithServfail(t *testing.T) {
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{answering(t, "192.0.2.80", &n)}
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s := testServer(t, cfg)
	s.forward.now = func() time.Time { panic("boom") }
	if resp := s.handle(t.Context(), inside(), question("example.com. A")); resp.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", resp)
	}
	if !strings.Contains(log.String(), "boom") {
		t.Errorf("the log says nothing of it: %s", log)
	}
	s.forward.now = time.Now
	resp := s.handle(t.Context(), inside(), question("example.com. A"))
	equal(t, "answer", text(resp.Answer), []string{"example.com. 60 IN A 192.0.2.80"})
}

// The LAN's address may change while the server runs.
func TestLANAddressIsFollowed(t *testing.T) {
	cfg := lanConfig(t)
	cfg.Addrs = []netip.AddrPort{freeAddr(t)}
	first, second := ownAddr(t), ownAddr(t)
	var moved atomic.Bool
	cfg.LAN.Listen = func() []netip.AddrPort {
		if moved.Load() {
			return []netip.AddrPort{second}
		}
		return []netip.AddrPort{first}
	}
	s := testServer(t, cfg)
	s.lookAgain = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	exchange(t, "udp", first, question("cam.yard.home.arpa. A"))
	moved.Store(true)
	exchange(t, "tcp", second, question("cam.yard.home.arpa. A"))
	poll(t, func() bool {
		_, _, err := (&dns.Client{Timeout: 100 * time.Millisecond}).Exchange(question("cam.yard.home.arpa. A"), first.String())
		return err != nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// A listener for the LAN that ends is made again, and what is in the way of it is said once.
func TestLANIsServedAgain(t *testing.T) {
	cfg := lanConfig(t)
	cfg.Addrs = []netip.AddrPort{freeAddr(t)}
	at := ownAddr(t)
	never := netip.AddrPortFrom(netip.MustParseAddr("fe80::1"), at.Port()) // on no interface
	cfg.LAN.Listen = func() []netip.AddrPort { return []netip.AddrPort{at, never} }
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s := testServer(t, cfg)
	s.lookAgain = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	exchange(t, "tcp", at, question("cam.yard.home.arpa. A"))
	poll(t, func() bool { return strings.Contains(log.String(), "not served, trying again") })
	endListener(t, at)
	poll(t, func() bool { return strings.Count(log.String(), "not served, trying again") >= 2 })
	exchange(t, "tcp", at, question("cam.yard.home.arpa. A"))
	exchange(t, "udp", at, question("cam.yard.home.arpa. A"))
	time.Sleep(10 * s.lookAgain)
	// The other address may be in the way by udp and by tcp.
	if n := strings.Count(log.String(), "not served, trying again"); n > 3 {
		t.Errorf("it was said %d times:\n%s", n, log)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// endListener makes this process's tcp listener at an address useless, as a kernel's error would.
func endListener(t *testing.T, at netip.AddrPort) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		must(t, err)
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 1 {
			continue
		}
		if sa, err := unix.Getsockname(fd); err != nil {
			t.Fatal(err)
		} else if v4, ok := sa.(*unix.SockaddrInet4); ok && v4.Addr == at.Addr().As4() && v4.Port == int(at.Port()) {
			must(t, unix.Shutdown(fd, unix.SHUT_RDWR))
			return
		}
	}
	t.Fatalf("nobody listens at %s", at)
}

// picky is an upstream that says nothing to the questions that ignored picks, and counts those.
func picky(ignored func(name string) bool, n *atomic.Int32) dns.HandlerFunc {
	return func(w dns.ResponseWriter, req *dns.Msg) {
		if ignored(req.Question[0].Name) {
			n.Add(1)
			return
		}
		resp := new(dns.Msg).SetReply(req)
		if req.Question[0].Qtype == dns.TypeA {
			rr, _ := dns.NewRR(req.Question[0].Name + " 60 IN A 192.0.2.80")
			resp.Answer = []dns.RR{rr}
		}
		_ = w.WriteMsg(resp)
	}
}

// A name that the upstream is silent about, asked again and again, is no upstream that is away.
func TestASilentNameIsNoSilentUpstream(t *testing.T) {
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{upstream(t, picky(func(name string) bool { return name == "dead.example." }, &n))}
	s := testServer(t, cfg)
	for range awayAfter {
		if _, err := s.forward.ask(t.Context(), question("dead.example. A")); err == nil || errors.Is(err, errAway) {
			t.Fatalf("%v, want that it was asked for", err)
		}
	}
	_, err := s.forward.ask(t.Context(), question("live.example. A"))
	must(t, err)
}

// Questions that are lost together count as one, and those that were asked before an answer came as none.
func TestQuestionsLostTogether(t *testing.T) {
	const many = 10 * awayAfter
	var quiet atomic.Bool
	var n atomic.Int32
	cfg := testConfig(t)
	cfg.Upstreams = []string{upstream(t, picky(func(string) bool { return quiet.Load() }, &n))}
	s := testServer(t, cfg)
	ask := func(name string) error {
		_, err := s.forward.ask(t.Context(), question(name+".example. A"))
		return err
	}
	lose := func(round string) (wait func()) {
		var lost sync.WaitGroup
		n.Store(0)
		quiet.Store(true)
		for i := range many {
			lost.Go(func() {
				if err := ask(fmt.Sprint(round, i)); err == nil {
					t.Errorf("%s: question %d was answered", round, i)
				}
			})
		}
		poll(t, func() bool { return n.Load() == many })
		return lost.Wait
	}
	failed := func() int {
		s.forward.mu.Lock()
		defer s.forward.mu.Unlock()
		for _, h := range s.forward.health {
			return h.failed
		}
		return 0
	}
	lose("together")()
	if got := failed(); got != 1 {
		t.Errorf("questions lost together count as %d, want 1", got)
	}
	wait := lose("before")
	quiet.Store(false)
	must(t, ask("first"))
	wait()
	if got := failed(); got != 0 {
		t.Errorf("questions from before an answer count as %d, want 0", got)
	}
	must(t, ask("second"))
}

// A server that answers by udp and cannot be asked by tcp is not away.
func TestUpstreamWithoutTCPIsNotAway(t *testing.T) {
	pc, err := net.ListenPacket("udp", ownAddr(t).String())
	must(t, err)
	run(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if strings.HasPrefix(req.Question[0].Name, "small") {
			picky(func(string) bool { return false }, nil)(w, req)
			return
		}
		resp := new(dns.Msg).SetReply(req)
		resp.Truncated = true
		_ = w.WriteMsg(resp)
	})})
	cfg := testConfig(t)
	cfg.Upstreams = []string{pc.LocalAddr().String()}
	s := testServer(t, cfg)
	for range awayAfter {
		if _, err := s.forward.ask(t.Context(), question("large.example. A")); err == nil || errors.Is(err, errAway) {
			t.Fatalf("%v, want that it was asked for", err)
		}
	}
	_, err = s.forward.ask(t.Context(), question("small.example. A"))
	must(t, err)
}
