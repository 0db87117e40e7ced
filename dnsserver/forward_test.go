package dnsserver

import (
	"context"
	"log/slog"
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
