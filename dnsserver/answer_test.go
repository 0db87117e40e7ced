package dnsserver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const soaText = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"

// answers are questions and what must come back, records in zone-file text, sorted.
// NODATA is NOERROR without records.
var answers = []struct {
	question string
	rcode    string
	answer   []string
	extra    []string
}{
	{"web.shop.svc.cluster.local. A", "NOERROR", []string{"web.shop.svc.cluster.local. 5 IN A 10.43.0.20"}, nil},
	{"web.shop.svc.cluster.local. AAAA", "NOERROR", []string{"web.shop.svc.cluster.local. 5 IN AAAA fd43::20"}, nil},
	{"web.shop.svc.cluster.local. MX", "NOERROR", nil, nil},
	{"WeB.Shop.svc.CLUSTER.local. A", "NOERROR", []string{"WeB.Shop.svc.CLUSTER.local. 5 IN A 10.43.0.20"}, nil},
	{"web.shop.svc.cluster.local. SRV", "NOERROR", []string{
		"web.shop.svc.cluster.local. 5 IN SRV 0 50 53 web.shop.svc.cluster.local.",
		"web.shop.svc.cluster.local. 5 IN SRV 0 50 80 web.shop.svc.cluster.local.",
	}, []string{"web.shop.svc.cluster.local. 5 IN A 10.43.0.20", "web.shop.svc.cluster.local. 5 IN AAAA fd43::20"}},
	{"_http._tcp.web.shop.svc.cluster.local. SRV", "NOERROR",
		[]string{"_http._tcp.web.shop.svc.cluster.local. 5 IN SRV 0 100 80 web.shop.svc.cluster.local."},
		[]string{"web.shop.svc.cluster.local. 5 IN A 10.43.0.20", "web.shop.svc.cluster.local. 5 IN AAAA fd43::20"}},
	{"_http._tcp.web.shop.svc.cluster.local. A", "NOERROR", nil, nil},
	{"_tcp.web.shop.svc.cluster.local. SRV", "NOERROR", nil, nil},
	{"_sctp.web.shop.svc.cluster.local. SRV", "NXDOMAIN", nil, nil},
	{"_http._udp.web.shop.svc.cluster.local. SRV", "NXDOMAIN", nil, nil},
	{"_none._tcp.web.shop.svc.cluster.local. SRV", "NXDOMAIN", nil, nil},
	{"http.tcp.web.shop.svc.cluster.local. SRV", "NXDOMAIN", nil, nil},
	{"nobody.shop.svc.cluster.local. A", "NXDOMAIN", nil, nil},
	{"web.nowhere.svc.cluster.local. A", "NXDOMAIN", nil, nil},
	{"10-42-0-9.web.shop.svc.cluster.local. A", "NOERROR", []string{"10-42-0-9.web.shop.svc.cluster.local. 5 IN A 10.42.0.9"}, nil},

	// Headless: ready endpoints on living nodes. A nil condition is ready.
	{"db.shop.svc.cluster.local. A", "NOERROR", []string{
		"db.shop.svc.cluster.local. 5 IN A 10.42.0.5", "db.shop.svc.cluster.local. 5 IN A 10.42.2.6"}, nil},
	{"db.shop.svc.cluster.local. AAAA", "NOERROR", nil, nil},
	{"db-0.db.shop.svc.cluster.local. A", "NOERROR", []string{"db-0.db.shop.svc.cluster.local. 5 IN A 10.42.0.5"}, nil},
	{"db-1.db.shop.svc.cluster.local. A", "NXDOMAIN", nil, nil}, // on the dead node
	{"db-2.db.shop.svc.cluster.local. A", "NXDOMAIN", nil, nil}, // not ready
	{"10-42-2-6.db.shop.svc.cluster.local. A", "NOERROR", []string{"10-42-2-6.db.shop.svc.cluster.local. 5 IN A 10.42.2.6"}, nil},
	{"_sql._tcp.db.shop.svc.cluster.local. SRV", "NOERROR", []string{
		"_sql._tcp.db.shop.svc.cluster.local. 5 IN SRV 0 50 5432 10-42-2-6.db.shop.svc.cluster.local.",
		"_sql._tcp.db.shop.svc.cluster.local. 5 IN SRV 0 50 5432 db-0.db.shop.svc.cluster.local.",
	}, []string{
		"10-42-2-6.db.shop.svc.cluster.local. 5 IN A 10.42.2.6", "db-0.db.shop.svc.cluster.local. 5 IN A 10.42.0.5",
	}},
	{"seed.shop.svc.cluster.local. A", "NOERROR", []string{"seed.shop.svc.cluster.local. 5 IN A 10.42.0.7"}, nil},
	{"empty.shop.svc.cluster.local. A", "NXDOMAIN", nil, nil},

	{"alias.shop.svc.cluster.local. A", "NOERROR", []string{
		"alias.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.", "web.shop.svc.cluster.local. 5 IN A 10.43.0.20"}, nil},
	{"alias.shop.svc.cluster.local. CNAME", "NOERROR", []string{"alias.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local."}, nil},
	{"outside.shop.svc.cluster.local. A", "SERVFAIL", []string{"outside.shop.svc.cluster.local. 5 IN CNAME example.com."}, nil},
	{"x.outside.shop.svc.cluster.local. A", "NXDOMAIN", nil, nil},
	{"literal.shop.svc.cluster.local. A", "NOERROR", []string{"literal.shop.svc.cluster.local. 5 IN A 192.0.2.9"}, nil},

	{"10-42-0-7.shop.pod.cluster.local. A", "NOERROR", []string{"10-42-0-7.shop.pod.cluster.local. 5 IN A 10.42.0.7"}, nil},
	{"fd42--7.shop.pod.cluster.local. AAAA", "NOERROR", []string{"fd42--7.shop.pod.cluster.local. 5 IN AAAA fd42::7"}, nil},
	{"10-42-0-7.shop.pod.cluster.local. AAAA", "NOERROR", nil, nil},
	{"10-42-0-7.nowhere.pod.cluster.local. A", "NXDOMAIN", nil, nil},
	{"10-42-0.shop.pod.cluster.local. A", "NXDOMAIN", nil, nil},

	{"north.peer.cluster.local. A", "NOERROR", []string{"north.peer.cluster.local. 5 IN A 192.0.2.1"}, nil},
	{"north.peer.cluster.local. AAAA", "NOERROR", nil, nil},
	{"east.peer.cluster.local. AAAA", "NOERROR", []string{"east.peer.cluster.local. 5 IN AAAA 2001:db8::3"}, nil},
	{"south.peer.cluster.local. A", "NXDOMAIN", nil, nil},

	{"dns-version.cluster.local. TXT", "NOERROR", []string{`dns-version.cluster.local. 5 IN TXT "1.1.0"`}, nil},
	{"ns.dns.cluster.local. A", "NOERROR", []string{"ns.dns.cluster.local. 5 IN A 10.43.0.10"}, nil},
	{"cluster.local. SOA", "NOERROR", []string{soaText}, nil},
	{"cluster.local. A", "NOERROR", nil, nil},
	{"svc.cluster.local. A", "NOERROR", nil, nil},
	{"shop.svc.cluster.local. A", "NOERROR", nil, nil},
	{"nowhere.svc.cluster.local. A", "NXDOMAIN", nil, nil},
	{"example.com.cluster.local. A", "NXDOMAIN", nil, nil},

	{"20.0.43.10.in-addr.arpa. PTR", "NOERROR", []string{"20.0.43.10.in-addr.arpa. 5 IN PTR web.shop.svc.cluster.local."}, nil},
	{"5.0.42.10.in-addr.arpa. PTR", "NOERROR", []string{"5.0.42.10.in-addr.arpa. 5 IN PTR db-0.db.shop.svc.cluster.local."}, nil},
	{"0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa. PTR", "NOERROR", []string{
		"0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa. 5 IN PTR web.shop.svc.cluster.local."}, nil},

	// Outside, without any upstream.
	{"example.com. A", "SERVFAIL", nil, nil},
	{"1.2.0.192.in-addr.arpa. PTR", "SERVFAIL", nil, nil},
	{"xcluster.local. A", "SERVFAIL", nil, nil},
	{"loop.shop.svc.cluster.local. A", "SERVFAIL", slices.Repeat([]string{"loop.shop.svc.cluster.local. 5 IN CNAME loop.shop.svc.cluster.local."}, 9), nil},
}

func TestAnswers(t *testing.T) {
	s := testServer(t, testConfig(t))
	for _, tt := range answers {
		t.Run(tt.question, func(t *testing.T) {
			resp := s.handle(t.Context(), inside(), question(tt.question))
			if got := dns.RcodeToString[resp.Rcode]; got != tt.rcode {
				t.Errorf("rcode %s, want %s", got, tt.rcode)
			}
			equal(t, "answer", text(resp.Answer), tt.answer)
			equal(t, "extra", text(resp.Extra), tt.extra)
			var authority []string
			if tt.rcode == "NXDOMAIN" || tt.rcode == "NOERROR" && len(tt.answer) == 0 {
				authority = []string{soaText}
			}
			equal(t, "authority", text(resp.Ns), authority)
			if _, err := resp.Pack(); err != nil {
				t.Errorf("pack: %v", err)
			}
		})
	}
}

func TestReverseOfUnknownAddressInside(t *testing.T) {
	resp := testServer(t, testConfig(t)).handle(t.Context(), inside(), question("77.0.42.10.in-addr.arpa. PTR"))
	if resp.Rcode != dns.RcodeNameError || len(resp.Ns) != 1 {
		t.Errorf("got %v", resp)
	}
}

func TestNotSyncedIsNoAnswer(t *testing.T) {
	cfg := testConfig(t)
	k := testKube(t)
	k.synced = append(k.synced, func() bool { return false })
	cfg.Source = k
	for _, q := range []string{"web.shop.svc.cluster.local. A", "nobody.shop.svc.cluster.local. A", "20.0.43.10.in-addr.arpa. PTR"} {
		if resp := testServer(t, cfg).handle(t.Context(), inside(), question(q)); resp.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %s", q, dns.RcodeToString[resp.Rcode])
		}
	}
}

func TestPanicIsAnsweredWithServfail(t *testing.T) {
	cfg := testConfig(t)
	cfg.Peers = func(string) []netip.Addr { panic("boom") }
	resp := testServer(t, cfg).handle(t.Context(), inside(), question("north.peer.cluster.local. A"))
	if resp.Rcode != dns.RcodeServerFailure || len(resp.Question) != 1 {
		t.Errorf("got %v", resp)
	}
}

func TestOddMessages(t *testing.T) {
	q := func(change func(*dns.Msg)) *dns.Msg {
		m := question("web.shop.svc.cluster.local. A")
		change(m)
		return m
	}
	for name, tt := range map[string]struct {
		msg  *dns.Msg
		want int
	}{
		"two questions": {q(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"no question":   {q(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"a response":    {q(func(m *dns.Msg) { m.Response = true }), dns.RcodeFormatError},
		"notify":        {q(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"chaos":         {q(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"transfer":      {q(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		"edns 1":        {q(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		if resp := testServer(t, testConfig(t)).handle(t.Context(), inside(), tt.msg); resp.Rcode != tt.want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[resp.Rcode], dns.RcodeToString[tt.want])
		}
	}
}

// question reads "NAME TYPE".
func question(s string) *dns.Msg {
	name, qtype, _ := strings.Cut(s, " ")
	return new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
}

// text renders records as sorted zone-file lines with single spaces.
func text(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(out)
	return out
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n  got  %s\n  want %s", what, strings.Join(got, "\n       "), strings.Join(want, "\n       "))
	}
}

func FuzzParse(f *testing.F) {
	for _, tt := range answers {
		name, _, _ := strings.Cut(tt.question, " ")
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		canonical := dns.CanonicalName(name)
		req, in := parse(canonical, "cluster.local.")
		if in && !strings.HasSuffix(canonical, "cluster.local.") {
			t.Errorf("%q is not in the domain", name)
		}
		if !in && req != (request{}) {
			t.Errorf("%q: parsed a name outside the domain", name)
		}
		if req.kind == kindPod && !req.ip.IsValid() {
			t.Errorf("%q: pod without address", name)
		}
		if req.port != "" && req.protocol == "" {
			t.Errorf("%q: port without protocol", name)
		}
		parseReverse(canonical)
	})
}

// FuzzHandle feeds packets as they come from the wire, from a pod and from the LAN. What the LAN
// hears of the cluster is REFUSED, and who has not said that more fits gets no more than 512 bytes.
func FuzzHandle(f *testing.F) {
	for _, tt := range answers {
		b, err := question(tt.question).Pack()
		must(f, err)
		f.Add(b)
	}
	for _, odd := range []string{"", "\x00", "\x00\x01\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff", "\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"} {
		f.Add([]byte(odd)) // nothing, less than a header, counts that lie, a name that points at itself
	}
	s := testServer(f, lanConfig(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(dns.Msg)
		if req.Unpack(b) != nil {
			return
		}
		for _, client := range []string{"10.42.0.7", "192.168.1.50"} {
			resp := s.respond(t.Context(), netip.MustParseAddr(client), "udp", req.Copy())
			if resp == nil {
				continue
			}
			if resp.Id != req.Id {
				t.Errorf("id %d, want %d", resp.Id, req.Id)
			}
			packed, err := resp.Pack()
			if err != nil {
				t.Fatalf("pack: %v", err)
			}
			limit := dns.MinMsgSize
			if req.IsEdns0() != nil {
				limit = maxUDP
			}
			if len(packed) > limit {
				t.Errorf("%d bytes by udp", len(packed))
			}
			if client == "192.168.1.50" && len(req.Question) == 1 && len(resp.Answer) > 0 && !dns.IsSubDomain("home.arpa.", dns.CanonicalName(req.Question[0].Name)) {
				t.Errorf("the LAN hears %v", resp.Answer)
			}
		}
	})
}

// FuzzSocket sends packets to a server's socket, readable or not; a question after each is answered.
func FuzzSocket(f *testing.F) {
	for _, tt := range answers {
		b, err := question(tt.question).Pack()
		must(f, err)
		f.Add(b)
		f.Add(b[:len(b)-3])
	}
	cfg := testConfig(f)
	cfg.Addrs = []netip.AddrPort{freeAddr(f)}
	s := testServer(f, cfg)
	ctx, cancel := context.WithCancel(f.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	f.Cleanup(func() { cancel(); must(f, <-done) })
	ask := question("north.peer.cluster.local. A")
	exchange(f, "udp", cfg.Addrs[0], ask)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("udp", cfg.Addrs[0].String())
		must(t, err)
		defer c.Close()
		if _, err := c.Write(b[:min(len(b), 9000)]); err != nil {
			t.Fatal(err)
		}
		exchange(t, "udp", cfg.Addrs[0], ask)
	})
}

func BenchmarkHandle(b *testing.B) {
	s := testServer(b, testConfig(b))
	for _, q := range []string{"web.shop.svc.cluster.local. A", "db.shop.svc.cluster.local. A", "nobody.shop.svc.cluster.local. A"} {
		b.Run(q, func(b *testing.B) {
			req := question(q)
			b.ReportAllocs()
			for b.Loop() {
				s.handle(b.Context(), inside(), req)
			}
		})
	}
}
