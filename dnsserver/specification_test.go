package dnsserver

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// specification is the cluster that the examples of the Kubernetes DNS specification
// 1.1.0 (github.com/kubernetes/dns, docs/specification.md) speak of.
const specification = `
kind: Namespace
metadata: {name: default}
---
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.3.0.1, clusterIPs: [10.3.0.1, "2001:db8::1"], ports: [{name: https, port: 443, protocol: TCP}, {port: 80, protocol: TCP}]}
---
kind: Service
metadata: {name: headless, namespace: default}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: https, port: 443, protocol: TCP}, {name: metrics, port: 9090, protocol: TCP}]}
---
kind: EndpointSlice
metadata: {name: headless-4, namespace: default, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: https, port: 443, protocol: TCP}, {name: metrics, port: 9090, protocol: TCP}]
endpoints:
- {addresses: [10.3.0.100], hostname: my-pet, conditions: {ready: true}}
- {addresses: [10.3.0.101], hostname: My-Pet-2, conditions: {ready: true}}
- {addresses: [10.3.0.102], hostname: my-pet-2, conditions: {ready: true}}
- {addresses: [10.3.0.103], conditions: {ready: true}}
- {addresses: [10.3.0.104], hostname: sick, conditions: {ready: false}}
---
kind: EndpointSlice
metadata: {name: headless-6, namespace: default, labels: {kubernetes.io/service-name: headless}}
addressType: IPv6
ports: [{name: https, port: 443, protocol: TCP}, {name: metrics, port: 9090, protocol: TCP}]
endpoints:
- {addresses: ["2001:db8::2"], hostname: my-pet, conditions: {ready: true}}
---
kind: Service
metadata: {name: nobody, namespace: default}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: https, port: 443, protocol: TCP}]}
---
kind: Service
metadata: {name: foo, namespace: default}
spec: {type: ExternalName, externalName: www.example.com}
`

// specified has the specification's examples, by its sections. "!" is NXDOMAIN,
// no answer is NODATA. Weights are not prescribed, nor are the TTLs.
var specified = []struct{ section, question, answer string }{
	{"2.1 comparisons are case-insensitive", "KUBERNETES.Default.SVC.cluster.LOCAL. A", "KUBERNETES.Default.SVC.cluster.LOCAL. A 10.3.0.1"},
	{"2.2 schema version", "dns-version.cluster.local. TXT", `dns-version.cluster.local. TXT "1.1.0"`},
	{"2.3.1 A", "kubernetes.default.svc.cluster.local. A", "kubernetes.default.svc.cluster.local. A 10.3.0.1"},
	{"2.3.1 AAAA", "kubernetes.default.svc.cluster.local. AAAA", "kubernetes.default.svc.cluster.local. AAAA 2001:db8::1"},
	{"2.3.2 SRV", "_https._tcp.kubernetes.default.svc.cluster.local. SRV", "_https._tcp.kubernetes.default.svc.cluster.local. SRV 0 100 443 kubernetes.default.svc.cluster.local."},
	{"2.3.2 no SRV of unnamed ports", "_._tcp.kubernetes.default.svc.cluster.local. SRV", "!"},
	{"2.3.3 PTR of IPv4", "1.0.3.10.in-addr.arpa. PTR", "1.0.3.10.in-addr.arpa. PTR kubernetes.default.svc.cluster.local."},
	{"2.3.3 PTR of IPv6", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR kubernetes.default.svc.cluster.local."},
	{"2.4.1 A of all ready endpoints", "headless.default.svc.cluster.local. A", `headless.default.svc.cluster.local. A 10.3.0.100
headless.default.svc.cluster.local. A 10.3.0.101
headless.default.svc.cluster.local. A 10.3.0.102
headless.default.svc.cluster.local. A 10.3.0.103`},
	{"2.4.1 AAAA of all ready endpoints", "headless.default.svc.cluster.local. AAAA", "headless.default.svc.cluster.local. AAAA 2001:db8::2"},
	{"2.4.1 no ready endpoint", "nobody.default.svc.cluster.local. A", "!"},
	{"2.4.1 A by hostname", "my-pet.headless.default.svc.cluster.local. A", "my-pet.headless.default.svc.cluster.local. A 10.3.0.100"},
	{"2.4.1 several addresses of a hostname", "my-pet-2.headless.default.svc.cluster.local. A", `my-pet-2.headless.default.svc.cluster.local. A 10.3.0.101
my-pet-2.headless.default.svc.cluster.local. A 10.3.0.102`},
	{"2.4.1 a hostname of the system", "10-3-0-103.headless.default.svc.cluster.local. A", "10-3-0-103.headless.default.svc.cluster.local. A 10.3.0.103"},
	{"2.4.1 an endpoint that is not ready", "sick.headless.default.svc.cluster.local. A", "!"},
	{"2.4.1 AAAA by hostname", "my-pet.headless.default.svc.cluster.local. AAAA", "my-pet.headless.default.svc.cluster.local. AAAA 2001:db8::2"},
	{"2.4.2 SRV", "_https._tcp.headless.default.svc.cluster.local. SRV", `_https._tcp.headless.default.svc.cluster.local. SRV 0 33 443 10-3-0-103.headless.default.svc.cluster.local.
_https._tcp.headless.default.svc.cluster.local. SRV 0 33 443 my-pet-2.headless.default.svc.cluster.local.
_https._tcp.headless.default.svc.cluster.local. SRV 0 33 443 my-pet.headless.default.svc.cluster.local.`},
	{"2.4.3 PTR of IPv4", "100.0.3.10.in-addr.arpa. PTR", "100.0.3.10.in-addr.arpa. PTR my-pet.headless.default.svc.cluster.local."},
	{"2.4.3 PTR of IPv6", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR",
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR my-pet.headless.default.svc.cluster.local."},
	{"2.5 ExternalName, A", "foo.default.svc.cluster.local. A", `foo.default.svc.cluster.local. CNAME www.example.com.
www.example.com. A 192.0.2.53`},
	{"2.5 ExternalName, AAAA", "foo.default.svc.cluster.local. AAAA", `foo.default.svc.cluster.local. CNAME www.example.com.
www.example.com. AAAA 2001:db8::1`},
}

func TestKubernetesDNSSpecification(t *testing.T) {
	cfg := testConfig(t)
	k := emptyKube(t)
	load(t, k, specification)
	cfg.Source, cfg.Networks = k, nil
	cfg.Upstreams = []string{upstream(t, func(w dns.ResponseWriter, req *dns.Msg) {
		resp := new(dns.Msg).SetReply(req)
		for _, text := range []string{"www.example.com. 28715 IN A 192.0.2.53", "www.example.com. 28715 IN AAAA 2001:db8::1"} {
			if rr, err := dns.NewRR(text); err == nil && rr.Header().Rrtype == req.Question[0].Qtype {
				resp.Answer = append(resp.Answer, rr)
			}
		}
		_ = w.WriteMsg(resp)
	})}
	s := testServer(t, cfg)
	for _, tt := range specified {
		t.Run(tt.section, func(t *testing.T) {
			resp := s.handle(t.Context(), inside(), question(tt.question))
			var got []string
			for _, line := range text(resp.Answer) {
				f := strings.Fields(line) // without TTL and class
				got = append(got, strings.Join(append([]string{f[0]}, f[3:]...), " "))
			}
			want := strings.Split(tt.answer, "\n")
			rcode := dns.RcodeSuccess
			if tt.answer == "!" {
				want, rcode = nil, dns.RcodeNameError
			}
			equal(t, "answer", got, want)
			if resp.Rcode != rcode {
				t.Errorf("rcode %s", dns.RcodeToString[resp.Rcode])
			}
			if len(want) == 0 && len(resp.Ns) != 1 {
				t.Errorf("no SOA with NXDOMAIN: %v", resp.Ns)
			}
		})
	}
	// N ready endpoints and M named ports are N x M records, here with one of a hostname that is there twice.
	var services, endpoints int
	for _, port := range []string{"https", "metrics"} {
		services += len(s.handle(t.Context(), inside(), question("_"+port+"._tcp.headless.default.svc.cluster.local. SRV")).Answer)
	}
	for _, name := range []string{"my-pet", "my-pet-2", "10-3-0-103"} {
		endpoints += min(1, len(s.handle(t.Context(), inside(), question(name+".headless.default.svc.cluster.local. A")).Answer))
	}
	if services != 2*endpoints {
		t.Errorf("2.4.2: %d SRV records of %d endpoints with 2 ports", services, endpoints)
	}
}
