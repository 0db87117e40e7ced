package dnsserver

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// ttl is that of every record and of every "no" of the cluster, in seconds: the
// specification's usual 5, short enough to follow a failover.
const ttl = 5

// specVersion is the version of the Kubernetes DNS specification that is served.
const specVersion = "1.1.0"

// reply is the answer to one question. rcode NXDOMAIN and NOERROR without
// answer (NODATA) carry an SOA in authority.
type reply struct {
	rcode                    int
	answer, extra, authority []dns.RR
	// chase is a name outside the cluster that answer ends in as a CNAME.
	chase string
}

// zone answers for the cluster domain and the reverse zones.
type zone struct {
	domain   string // canonical
	networks []netip.Prefix
	self     []netip.Addr
	source   Source
	alive    func(node string) bool
	peers    func(name string) []netip.Addr
}

// lookup answers q from memory. ours is false when q is not about the cluster.
func (z *zone) lookup(q dns.Question) (r reply, ours bool) {
	name := dns.CanonicalName(q.Name)
	if ip, ok := parseReverse(name); ok {
		return z.reverse(q, ip)
	}
	req, in := parse(name, z.domain)
	if !in {
		return reply{}, false
	}
	if !z.source.Synced() {
		return reply{rcode: dns.RcodeServerFailure}, true
	}
	r, exists := z.forward(q, req)
	switch {
	case !exists:
		r = reply{rcode: dns.RcodeNameError, authority: []dns.RR{soa(z.domain, z.domain)}}
	case len(r.answer) == 0 && r.rcode == dns.RcodeSuccess:
		r.authority = []dns.RR{soa(z.domain, z.domain)}
	}
	return r, true
}

// forward answers a parsed name; exists is false for NXDOMAIN.
func (z *zone) forward(q dns.Question, req request) (r reply, exists bool) {
	switch req.kind {
	case kindApex:
		return apex(q, z.domain, z.self), true
	case kindBranch:
		return r, true
	case kindNS:
		r.answer = addresses(q.Name, q.Qtype, z.self)
		return r, true
	case kindVersion:
		if q.Qtype == dns.TypeTXT {
			r.answer = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specVersion}}}
		}
		return r, true
	case kindNamespace:
		return r, z.source.Namespace(req.namespace)
	case kindPeer:
		ips := z.peers(req.host)
		r.answer = addresses(q.Name, q.Qtype, ips)
		return r, len(ips) > 0
	case kindPod:
		if !z.source.Namespace(req.namespace) {
			return r, false
		}
		r.answer = addresses(q.Name, q.Qtype, []netip.Addr{req.ip})
		return r, true
	case kindService, kindEndpoint:
		return z.service(q, req)
	}
	return r, false
}

// reverse answers PTR for the addresses of Services and endpoints. An unknown
// address within the cluster's networks does not exist; others are not ours.
func (z *zone) reverse(q dns.Question, ip netip.Addr) (reply, bool) {
	inside := slices.ContainsFunc(z.networks, func(p netip.Prefix) bool { return p.Contains(ip) })
	if !z.source.Synced() {
		return reply{rcode: dns.RcodeServerFailure}, inside
	}
	names := z.namesOf(ip)
	if len(names) == 0 && !inside {
		return reply{}, false
	}
	// The zone cut of a reverse name is not known here; the name's own parent is a legal owner.
	_, parent, _ := strings.Cut(dns.CanonicalName(q.Name), ".")
	switch {
	case len(names) == 0:
		return reply{rcode: dns.RcodeNameError, authority: []dns.RR{soa(parent, z.domain)}}, true
	case q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY:
		return reply{authority: []dns.RR{soa(parent, z.domain)}}, true
	}
	var r reply
	for _, name := range names {
		r.answer = append(r.answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
	}
	return r, true
}

// apex answers what is asked about a zone itself.
func apex(q dns.Question, zone string, self []netip.Addr) (r reply) {
	switch q.Qtype {
	case dns.TypeSOA:
		r.answer = []dns.RR{soa(q.Name, zone)}
	case dns.TypeNS:
		r.answer = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "ns.dns." + zone}}
		r.extra = addresses("ns.dns."+zone, 0, self)
	}
	return r
}

// soa is the start of authority, which tells resolvers how long "no" holds.
// There are no zone transfers, so the serial never changes.
func soa(owner, zone string) dns.RR {
	return &dns.SOA{
		Hdr: header(owner, dns.TypeSOA), Ns: "ns.dns." + zone, Mbox: "hostmaster." + zone,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// addresses makes A and AAAA records of those ips that qtype asks for (0 or ANY: both), in
// random order, so that clients which take the first one spread.
func addresses(name string, qtype uint16, ips []netip.Addr) []dns.RR {
	both := qtype == 0 || qtype == dns.TypeANY
	var rrs []dns.RR
	for _, ip := range ips {
		ip = ip.Unmap()
		switch {
		case ip.Is4() && (both || qtype == dns.TypeA):
			rrs = append(rrs, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		case ip.Is6() && (both || qtype == dns.TypeAAAA):
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
	return rrs
}
