package dnsserver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// TestServe asks over real sockets: udp, truncation, tcp, stop.
func TestServe(t *testing.T) {
	cfg := testConfig(t)
	addr := freeAddr(t)
	cfg.Addrs = []netip.AddrPort{addr}
	k := cfg.Source.(*Kube)
	slice := &discoveryv1.EndpointSlice{}
	slice.Namespace, slice.Name = "shop", "empty-1"
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "empty"}
	for i := range 100 {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.9.%d", i)}, NodeName: ptr.To("a")})
	}
	must(t, k.slices.Add(slice))
	s := testServer(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()

	resp := exchange(t, "udp", addr, question("web.shop.svc.cluster.local. A"))
	equal(t, "udp", text(resp.Answer), []string{"web.shop.svc.cluster.local. 5 IN A 10.43.0.20"})
	resp = exchange(t, "udp", addr, question("empty.shop.svc.cluster.local. A"))
	if !resp.Truncated || len(resp.Answer) >= 100 || resp.Len() > dns.MinMsgSize {
		t.Errorf("udp: truncated %v, %d records, %d bytes", resp.Truncated, len(resp.Answer), resp.Len())
	}
	resp = exchange(t, "tcp", addr, question("empty.shop.svc.cluster.local. A"))
	if resp.Truncated || len(resp.Answer) != 100 {
		t.Errorf("tcp: truncated %v, %d records", resp.Truncated, len(resp.Answer))
	}
	big := question("empty.shop.svc.cluster.local. A")
	big.SetEdns0(4096, false)
	if resp = exchange(t, "udp", addr, big); resp.IsEdns0() == nil || resp.Len() > maxUDP {
		t.Errorf("edns: %v, %d bytes", resp.IsEdns0(), resp.Len())
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// What is no question, on either socket, gets no answer or an error, and keeps nobody waiting.
func TestGarbageOnTheSockets(t *testing.T) {
	cfg := testConfig(t)
	addr := freeAddr(t)
	cfg.Addrs = []netip.AddrPort{addr}
	s := testServer(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	fine := func(after string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			resp := exchange(t, network, addr, question("north.peer.cluster.local. A"))
			equal(t, network+" after "+after, text(resp.Answer), []string{"north.peer.cluster.local. 5 IN A 192.0.2.1"})
		}
	}
	fine("nothing")
	whole, err := question("north.peer.cluster.local. A").Pack()
	must(t, err)
	header := func(counts ...byte) []byte { return append([]byte{0, 1, 1, 0}, counts...) }
	one := header(0, 1, 0, 0, 0, 0, 0, 0)
	garbage := map[string][]byte{
		"nothing":                        {},
		"a byte":                         {0},
		"half a header":                  whole[:6],
		"a header alone":                 one,
		"half a message":                 whole[:len(whole)/2],
		"all but a byte":                 whole[:len(whole)-1],
		"counts that lie":                header(255, 255, 255, 255, 255, 255, 255, 255),
		"a name that points at itself":   append(bytes.Clone(one), 0xc0, 0x0c, 0, 1, 0, 1),
		"a name that points ahead":       append(bytes.Clone(one), 0xc0, 0xff, 0, 1, 0, 1),
		"names that point at each other": append(bytes.Clone(one), 0xc0, 0x0e, 0xc0, 0x0c, 0, 1, 0, 1),
		"a label of 64":                  append(bytes.Clone(one), bytes.Repeat([]byte{64}, 80)...),
		"an answer":                      append([]byte{0, 1, 0x81, 0x80}, whole[4:]...),
		"more after the message":         append(bytes.Clone(whole), bytes.Repeat([]byte{0xff}, 500)...),
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		b := make([]byte, random.IntN(600))
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		if i%2 == 0 && len(b) > len(one) { // what has a good header is read further
			copy(b, one)
		}
		garbage[fmt.Sprint("random ", i)] = b
	}
	u, err := net.Dial("udp", addr.String())
	must(t, err)
	defer u.Close()
	for what, b := range garbage {
		_, err := u.Write(b)
		must(t, err)
		if len(what) < 8 || what[:7] != "random " {
			fine(what + " by udp")
		}
	}
	fine("all of it by udp")
	say := func(b []byte) net.Conn {
		c, err := net.Dial("tcp", addr.String())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		_, err = c.Write(b) // it may have hung up already
		must(t, err)
		return c
	}
	framed := func(size int, b []byte) []byte { return append([]byte{byte(size >> 8), byte(size)}, b...) }
	for what, b := range garbage {
		if len(what) < 8 || what[:7] != "random " {
			say(framed(len(b), b))
			fine(what + " by tcp")
		}
	}
	say([]byte{0})
	say(framed(0xffff, whole)) // more is promised than comes
	say(framed(5, whole))      // less
	say(framed(0, nil))
	fine("lengths that lie")
	// Two questions at once, and after garbage on the same connection.
	both := say(append(framed(len(whole), whole), framed(len(whole), whole)...))
	for range 2 {
		resp, err := (&dns.Conn{Conn: both}).ReadMsg()
		must(t, err)
		equal(t, "two at once", text(resp.Answer), []string{"north.peer.cluster.local. 5 IN A 192.0.2.1"})
	}
	// As many idle connections as there may be keep udp from nobody, and tcp until they are dropped.
	for range maxConns + 50 {
		c, err := net.Dial("tcp", addr.String())
		must(t, err)
		t.Cleanup(func() { c.Close() })
	}
	resp := exchange(t, "udp", addr, question("north.peer.cluster.local. A"))
	equal(t, "udp beside idle connections", text(resp.Answer), []string{"north.peer.cluster.local. 5 IN A 192.0.2.1"})
	fine("idle connections")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// TestTakenAddress waits for an address that somebody else has, and says the cure.
func TestTakenAddress(t *testing.T) {
	cfg := testConfig(t)
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	addr := netip.MustParseAddrPort(taken.LocalAddr().String())
	cfg.Addrs = []netip.AddrPort{addr}
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s := testServer(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	poll(t, func() bool { return strings.Contains(log.String(), "ss -lnptu") })
	must(t, taken.Close())
	resp := exchange(t, "udp", addr, question("north.peer.cluster.local. A"))
	equal(t, "answer", text(resp.Answer), []string{"north.peer.cluster.local. 5 IN A 192.0.2.1"})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// TestAddressNotThereYet binds an address that no interface has.
func TestAddressNotThereYet(t *testing.T) {
	cfg := testConfig(t)
	cfg.Addrs = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.53"), freeAddr(t).Port())}
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- testServer(t, cfg).Run(ctx) }()
	poll(t, func() bool { return strings.Count(log.String(), "dns server listens") == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// TestForward asks the second upstream when the first is silent or refuses, and caches.
func TestForward(t *testing.T) {
	var asked atomic.Int32
	good := upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		asked.Add(1)
		resp := new(dns.Msg).SetReply(req)
		rr, _ := dns.NewRR("example.com. 60 IN A 192.0.2.80")
		resp.Answer = []dns.RR{rr}
		_ = w.WriteMsg(resp)
	})
	refusing := upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(req, dns.RcodeRefused))
	})
	cfg := testConfig(t)
	// A port where nobody listens answers at once with ICMP "unreachable".
	cfg.Upstreams = []string{ownAddr(t).String(), refusing, good}
	s := testServer(t, cfg)
	for range 3 {
		resp := s.handle(t.Context(), inside(), question("Example.COM. A"))
		equal(t, "answer", text(resp.Answer), []string{"Example.COM. 60 IN A 192.0.2.80"})
		if resp.Question[0].Name != "Example.COM." || resp.Authoritative {
			t.Errorf("got %v", resp)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want 1: the cache does not work", n)
	}
	resp := s.handle(t.Context(), inside(), question("outside.shop.svc.cluster.local. A"))
	equal(t, "chased", text(resp.Answer), []string{"example.com. 60 IN A 192.0.2.80", "outside.shop.svc.cluster.local. 5 IN CNAME example.com."})
}

func TestResolvConfIsFollowedAndNeverOurselves(t *testing.T) {
	cfg := testConfig(t)
	cfg.Upstreams = nil
	cfg.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	f, err := newForwarder(cfg.withDefaults())
	must(t, err)
	now := time.Unix(1000, 0)
	f.now = func() time.Time { return now }
	ask := func() []netip.AddrPort { _, _, ask := f.order("example.com."); return ask }
	if got := ask(); len(got) != 0 {
		t.Errorf("without a file: %v", got)
	}
	for i, tt := range []struct{ file, want string }{
		{"nameserver 10.43.0.10\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nameserver 192.0.2.7\nnameserver 2001:db8::1\n", "[192.0.2.7:53 [2001:db8::1]:53]"},
	} {
		must(t, os.WriteFile(cfg.ResolvConf, []byte(tt.file), 0o644))
		must(t, os.Chtimes(cfg.ResolvConf, time.Time{}, time.Unix(int64(2000+i), 0)))
		now = now.Add(resolvConfEvery)
		if got := fmt.Sprint(ask()); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
	f.failed(netip.MustParseAddrPort("192.0.2.7:53"), now)
	if got := fmt.Sprint(ask()); got != "[[2001:db8::1]:53 192.0.2.7:53]" {
		t.Errorf("benched: %s", got)
	}
}

func TestCache(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCache(2, func() time.Time { return now })
	msg := func(ttl uint32) *dns.Msg {
		m := question("a. A")
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(192, 0, 2, 1)}}
		return m
	}
	key := func(name string) cacheKey { return cacheKey{name: name, qtype: dns.TypeA} }
	c.put(key("a."), msg(60))
	c.put(key("b."), msg(10))
	now = now.Add(9 * time.Second)
	if got, fresh := c.get(key("a.")); !fresh || got.Answer[0].Header().Ttl != 51 {
		t.Errorf("a after 9 s: %v", got)
	}
	c.put(key("c."), msg(60)) // pushes out b, which was used least recently
	has := func(name string) bool { _, fresh := c.get(key(name)); return fresh }
	if has("b.") || !has("a.") || !has("c.") {
		t.Error("not the least recently used one was dropped")
	}
	now = now.Add(52 * time.Second)
	if got, fresh := c.get(key("a.")); fresh || got == nil || got.Answer[0].Header().Ttl != staleTTL {
		t.Errorf("a is over its TTL, and there is nothing better: %v, fresh %v", got, fresh)
	}
	c.failed(key("a."))
	if !has("a.") {
		t.Error("a could not be renewed, and is to be asked again at once")
	}
	now = now.Add(staleRetry)
	if has("a.") {
		t.Error("a is never asked again")
	}
	now = now.Add(staleFor)
	if got, _ := c.get(key("a.")); got != nil {
		t.Error("a is kept for ever")
	}
	failed := question("d. A")
	failed.Rcode = dns.RcodeServerFailure
	c.put(key("d."), failed)
	if has("d.") {
		t.Error("a failure was kept")
	}
}

func TestValidateSaysWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"no address":         func(c *Config) { c.Addrs = nil },
		"is not a domain":    func(c *Config) { c.Domain = "a..b" },
		"write it as":        func(c *Config) { c.Upstreams = []string{"router"} },
		"Source and Logger ": func(c *Config) { c.Source = nil },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// upstream runs a DNS server on loopback until the test ends and returns its address.
func upstream(t *testing.T, h dns.HandlerFunc) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	run(t, &dns.Server{PacketConn: pc, Handler: h})
	return pc.LocalAddr().String()
}

// run serves until the test ends or it is told to stop.
func run(t *testing.T, srv *dns.Server) (stop func()) {
	t.Helper()
	started, done := make(chan struct{}), make(chan error, 1)
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { done <- srv.ActivateAndServe() }()
	<-started
	stop = sync.OnceFunc(func() { _ = srv.Shutdown(); <-done })
	t.Cleanup(stop)
	return stop
}

// exchange asks until the server is there.
func exchange(t testing.TB, network string, addr netip.AddrPort, req *dns.Msg) (resp *dns.Msg) {
	t.Helper()
	client := &dns.Client{Net: network, Timeout: time.Second, UDPSize: dns.MaxMsgSize}
	poll(t, func() bool {
		var err error
		resp, _, err = client.Exchange(req, addr.String())
		return err == nil
	})
	resp.Compress = true // as it came, for Len
	return resp
}

func poll(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within a minute")
		}
	}
}

func freeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer pc.Close()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
