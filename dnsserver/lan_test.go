package dnsserver

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// lanManifests is what can be reached from outside. The peer 192.0.2.2 is dead.
const lanManifests = `
---
kind: Service
metadata: {name: cam, namespace: yard}
spec: {type: LoadBalancer, clusterIP: 10.43.0.30, clusterIPs: [10.43.0.30], ports: [{name: http, port: 80, protocol: TCP, nodePort: 30081}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.200}]}}
---
kind: Service
metadata: {name: lamp, namespace: yard}
spec: {type: NodePort, ipFamilies: [IPv4], clusterIP: 10.43.0.31, clusterIPs: [10.43.0.31], ports: [{name: coap, port: 5683, protocol: UDP, nodePort: 30683}]}
---
kind: Service
metadata: {name: gate, namespace: yard}
spec: {type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.43.0.32, clusterIPs: [10.43.0.32], ports: [{name: http, port: 80, protocol: TCP, nodePort: 30082}]}
---
kind: EndpointSlice
metadata: {name: gate-1, namespace: yard, labels: {kubernetes.io/service-name: gate}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.42.2.9], nodeName: c, conditions: {ready: true}}
---
kind: Ingress
metadata: {name: shop, namespace: yard}
spec: {rules: [{host: Shop.home.arpa}, {host: "*.apps.home.arpa"}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2}, {ip: 192.0.2.3}, {ip: "2001:db8::2"}, {ip: "2001:db8::3"}]}}
---
kind: Namespace
metadata: {name: yard}`

func lanConfig(t testing.TB) Config {
	cfg := testConfig(t)
	peer := func(name, n string, alive bool) Peer {
		return Peer{Name: name, Addrs: addrs([]string{"192.0.2." + n, "2001:db8::" + n}), Alive: alive}
	}
	cfg.LAN = LAN{
		Zone:   "home.arpa",
		Listen: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")} },
		Peers: func() []Peer {
			return []Peer{peer("a", "1", true), peer("b", "2", false), peer("c", "3", true)}
		},
	}
	return cfg
}

const lanSOA = "home.arpa. 5 IN SOA ns.dns.home.arpa. hostmaster.home.arpa. 1 7200 1800 86400 5"

func TestLANZone(t *testing.T) {
	s := testServer(t, lanConfig(t))
	for _, tt := range []struct {
		question, rcode string
		answer, extra   []string
	}{
		{"cam.yard.home.arpa. A", "NOERROR", []string{"cam.yard.home.arpa. 5 IN A 192.0.2.200"}, nil},
		{"CAM.yard.HOME.arpa. A", "NOERROR", []string{"CAM.yard.HOME.arpa. 5 IN A 192.0.2.200"}, nil},
		{"cam.yard.home.arpa. AAAA", "NOERROR", nil, nil},
		{"_http._tcp.cam.yard.home.arpa. SRV", "NOERROR", []string{"_http._tcp.cam.yard.home.arpa. 5 IN SRV 0 100 80 cam.yard.home.arpa."}, []string{"cam.yard.home.arpa. 5 IN A 192.0.2.200"}},
		{"lamp.yard.home.arpa. A", "NOERROR", []string{"lamp.yard.home.arpa. 5 IN A 192.0.2.1", "lamp.yard.home.arpa. 5 IN A 192.0.2.3"}, nil},
		{"lamp.yard.home.arpa. SRV", "NOERROR", []string{"lamp.yard.home.arpa. 5 IN SRV 0 100 30683 lamp.yard.home.arpa."},
			[]string{"lamp.yard.home.arpa. 5 IN A 192.0.2.1", "lamp.yard.home.arpa. 5 IN A 192.0.2.3"}},
		{"_udp.lamp.yard.home.arpa. A", "NOERROR", nil, nil},
		{"_tcp.lamp.yard.home.arpa. A", "NXDOMAIN", nil, nil},
		{"gate.yard.home.arpa. A", "NOERROR", []string{"gate.yard.home.arpa. 5 IN A 192.0.2.3"}, nil}, // only where a pod is
		{"shop.home.arpa. A", "NOERROR", []string{"shop.home.arpa. 5 IN A 192.0.2.1", "shop.home.arpa. 5 IN A 192.0.2.3"}, nil},
		{"shop.home.arpa. AAAA", "NOERROR", []string{"shop.home.arpa. 5 IN AAAA 2001:db8::3"}, nil},
		{"lamp.yard.home.arpa. AAAA", "NOERROR", nil, nil}, // its family is IPv4
		{"gate.yard.home.arpa. AAAA", "NOERROR", []string{"gate.yard.home.arpa. 5 IN AAAA 2001:db8::3"}, nil},
		{"x.apps.home.arpa. A", "NOERROR", []string{"x.apps.home.arpa. 5 IN A 192.0.2.1", "x.apps.home.arpa. 5 IN A 192.0.2.3"}, nil},
		{"y.x.apps.home.arpa. A", "NXDOMAIN", nil, nil}, // a wildcard is one label
		{"apps.home.arpa. A", "NOERROR", nil, nil},
		{"yard.home.arpa. A", "NOERROR", nil, nil},
		{"home.arpa. NS", "NOERROR", []string{"home.arpa. 5 IN NS ns.dns.home.arpa."}, []string{"ns.dns.home.arpa. 5 IN A 192.0.2.1"}},
		{"ns.dns.home.arpa. A", "NOERROR", []string{"ns.dns.home.arpa. 5 IN A 192.0.2.1"}, nil},
		// Inside the cluster these exist; outside nobody learns of them.
		{"web.shop.home.arpa. A", "NXDOMAIN", nil, nil},
		{"db.shop.home.arpa. A", "NXDOMAIN", nil, nil},
		{"web.shop.svc.cluster.local. A", "REFUSED", nil, nil},
		{"nobody.shop.svc.cluster.local. A", "REFUSED", nil, nil},
		{"20.0.43.10.in-addr.arpa. PTR", "REFUSED", nil, nil},
		{"north.peer.cluster.local. A", "REFUSED", nil, nil},
		{"example.com. A", "REFUSED", nil, nil},
	} {
		t.Run(tt.question, func(t *testing.T) {
			resp := s.respond(t.Context(), netip.MustParseAddr("192.168.7.7"), "tcp", question(tt.question))
			if got := dns.RcodeToString[resp.Rcode]; got != tt.rcode {
				t.Errorf("rcode %s, want %s", got, tt.rcode)
			}
			equal(t, "answer", text(resp.Answer), tt.answer)
			equal(t, "extra", text(resp.Extra), tt.extra)
			var authority []string
			if tt.rcode == "NXDOMAIN" || tt.rcode == "NOERROR" && tt.answer == nil {
				authority = []string{lanSOA}
			}
			equal(t, "authority", text(resp.Ns), authority)
			if resp.RecursionAvailable {
				t.Error("recursion is offered to the LAN")
			}
		})
	}
}

// Who cannot be dialled is named only if nobody else answers.
func TestLANZoneLeavesHiddenPeersOut(t *testing.T) {
	cfg := lanConfig(t)
	var hidden string
	peers := cfg.LAN.Peers
	cfg.LAN.Peers = func() []Peer {
		all := peers()
		for i := range all {
			all[i].Hidden = strings.Contains(hidden, all[i].Name)
		}
		return all
	}
	s := testServer(t, cfg)
	for _, tt := range []struct{ hidden, question, answer string }{
		{"a", "lamp.yard.home.arpa.", "192.0.2.3"},
		{"c", "lamp.yard.home.arpa.", "192.0.2.1"},
		{"ac", "lamp.yard.home.arpa.", "192.0.2.1 192.0.2.3"},
		{"c", "gate.yard.home.arpa.", "192.0.2.3"}, // only it has a pod
		{"c", "shop.home.arpa.", "192.0.2.1"},
		{"ac", "shop.home.arpa.", "192.0.2.1 192.0.2.3"},
	} {
		hidden = tt.hidden
		resp := s.respond(t.Context(), netip.MustParseAddr("192.168.7.7"), "tcp", question(tt.question+" A"))
		var want []string
		for _, ip := range strings.Fields(tt.answer) {
			want = append(want, tt.question+" 5 IN A "+ip)
		}
		equal(t, tt.hidden+" hidden, "+tt.question, text(resp.Answer), want)
	}
	// What the others cannot serve does not count: lamp's family is IPv4, and only the hidden one has it.
	cfg.LAN.Peers = func() []Peer {
		all := peers()
		all[0].Hidden, all[2].Addrs = true, all[2].Addrs[1:]
		return all
	}
	resp := testServer(t, cfg).respond(t.Context(), netip.MustParseAddr("192.168.7.7"), "tcp", question("lamp.yard.home.arpa. A"))
	equal(t, "only a hidden peer has the family", text(resp.Answer), []string{"lamp.yard.home.arpa. 5 IN A 192.0.2.1"})
}

func TestWhoMayAskWhat(t *testing.T) {
	for _, tt := range []struct {
		client           string
		cluster, forward bool   // LAN.Cluster, LAN.Forward
		ours, inner, out string // rcodes of a name in the LAN's zone, of the cluster's, of neither
	}{
		{"10.42.1.7", false, false, "NOERROR", "NOERROR", "SERVFAIL"}, // a pod
		{"127.0.0.1", false, false, "NOERROR", "NOERROR", "SERVFAIL"},
		{"192.168.1.50", false, false, "NOERROR", "REFUSED", "REFUSED"},
		{"192.168.1.50", true, false, "NOERROR", "NOERROR", "REFUSED"},
		{"192.168.1.50", false, true, "NOERROR", "REFUSED", "SERVFAIL"},
		{"fd77::5", true, true, "NOERROR", "NOERROR", "SERVFAIL"},
		{"8.8.8.8", true, true, "REFUSED", "REFUSED", "REFUSED"}, // the internet
	} {
		cfg := lanConfig(t)
		cfg.LAN.Cluster, cfg.LAN.Forward = tt.cluster, tt.forward
		s := testServer(t, cfg)
		for name, want := range map[string]string{"cam.yard.home.arpa. A": tt.ours, "web.shop.svc.cluster.local. A": tt.inner, "example.com. A": tt.out} {
			resp := s.respond(t.Context(), netip.MustParseAddr(tt.client), "udp", question(name))
			if got := dns.RcodeToString[resp.Rcode]; got != want {
				t.Errorf("%s, cluster %v, forward %v: %s: %s, want %s", tt.client, tt.cluster, tt.forward, name, got, want)
			}
			if got, want := resp.RecursionAvailable, tt.out == "SERVFAIL"; got != want {
				t.Errorf("%s, cluster %v, forward %v: %s: recursion offered: %v", tt.client, tt.cluster, tt.forward, name, got)
			}
		}
	}
	// Nor do what is no ordinary question, and who asks it.
	for _, change := range []func(*dns.Msg){
		func(m *dns.Msg) { m.Question = nil }, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR },
		func(m *dns.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) },
	} {
		req := question("example.com. A")
		change(req)
		if resp := testServer(t, lanConfig(t)).respond(t.Context(), netip.MustParseAddr("192.168.1.50"), "udp", req); resp.RecursionAvailable {
			t.Errorf("recursion is offered to the LAN: %v", resp)
		}
	}
	// Without a zone and without a word about it, the LAN gets nothing.
	resp := testServer(t, testConfig(t)).respond(t.Context(), netip.MustParseAddr("192.168.1.50"), "udp", question("cam.yard.home.arpa. A"))
	if resp.Rcode != dns.RcodeRefused {
		t.Errorf("no zone: %s", dns.RcodeToString[resp.Rcode])
	}
	// A CNAME out of the cluster is not followed for who may not ask there.
	cfg := lanConfig(t)
	cfg.LAN.Cluster = true
	resp = testServer(t, cfg).respond(t.Context(), netip.MustParseAddr("192.168.1.50"), "udp", question("outside.shop.svc.cluster.local. A"))
	equal(t, "cname", text(resp.Answer), []string{"outside.shop.svc.cluster.local. 5 IN CNAME example.com."})
}

// Of 200 questions at once, a client network gets the second's worth, and of the rest
// every other answer is "ask by tcp", no longer than the question.
func TestRateLimit(t *testing.T) {
	cfg := lanConfig(t)
	cfg.LAN.Rate = 50
	s := testServer(t, cfg)
	now := time.Unix(1000, 0)
	s.limit.now = func() time.Time { return now }
	count := func(client string, n int) (full, cut, none int) {
		for range n {
			req := question("lamp.yard.home.arpa. SRV")
			switch resp := s.respond(t.Context(), netip.MustParseAddr(client), "udp", req); {
			case resp == nil:
				none++
			case resp.Truncated:
				if cut++; resp.Len() > req.Len() {
					t.Errorf("%d bytes for %d", resp.Len(), req.Len())
				}
			default:
				full++
			}
		}
		return full, cut, none
	}
	if full, cut, none := count("192.168.1.50", 200); full != 50 || cut != 75 || none != 75 {
		t.Errorf("%d full, %d cut, %d none", full, cut, none)
	}
	if full, _, _ := count("192.168.1.51", 1); full != 0 {
		t.Error("a neighbour in the network counts apart")
	}
	if full, _, _ := count("192.168.2.50", 1); full != 1 {
		t.Error("another network suffers")
	}
	now = now.Add(time.Second)
	if full, _, _ := count("192.168.1.50", 60); full != 50 {
		t.Errorf("a second later: %d", full)
	}
	if full, _, _ := count("10.42.0.9", 500); full != 500 {
		t.Errorf("a pod got %d of 500", full)
	}
	for range 100 {
		if resp := s.respond(t.Context(), netip.MustParseAddr("192.168.1.50"), "tcp", question("cam.yard.home.arpa. A")); len(resp.Answer) != 1 {
			t.Fatal("tcp is limited too, whose clients cannot be forged")
		}
	}
	req := question("web.shop.svc.cluster.local. ANY")
	if resp := s.respond(t.Context(), netip.MustParseAddr("10.42.0.9"), "udp", req); !resp.Truncated || len(resp.Answer) > 0 {
		t.Errorf("ANY by udp: %v", resp)
	}
}

func TestLANIsValidated(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"overlap":             func(c *Config) { c.LAN.Zone = "lan.cluster.local" },
		"is not a domain":     func(c *Config) { c.LAN.Zone = "*.home.arpa" },
		"LAN.Peers":           func(c *Config) { c.LAN.Peers = nil },
		"cannot be forwarded": func(c *Config) { c.Forward = map[string][]string{"svc.cluster.local": {"192.0.2.1"}} },
		"no server":           func(c *Config) { c.Forward = map[string][]string{"corp.example": nil} },
		"write it as":         func(c *Config) { c.Forward = map[string][]string{"corp.example": {"dc1"}} },
	} {
		cfg := lanConfig(t)
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
