package dnsserver

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// kind is what a name in the cluster domain speaks of.
type kind uint8

const (
	kindUnknown   kind = iota // no name of that shape can exist
	kindApex                  // the domain itself
	kindBranch                // exists only because names below it do
	kindVersion               // dns-version
	kindNS                    // ns.dns, the name server itself
	kindNamespace             // NS.svc, NS.pod
	kindService               // [_PORT._PROTO.]SVC.NS.svc
	kindEndpoint              // HOST.SVC.NS.svc
	kindPod                   // A-B-C-D.NS.pod
	kindPeer                  // PEER.peer
)

// request is a question name, taken apart. Its strings are lower case.
type request struct {
	kind               kind
	namespace, service string
	port, protocol     string // without underscore; both empty or none
	host               string // endpoint's or peer's name
	ip                 netip.Addr
}

// parse takes a canonical (lower case, dot at the end) name apart. in is false
// when the name is not in the domain.
func parse(name, domain string) (req request, in bool) {
	if !dns.IsSubDomain(domain, name) {
		return request{}, false
	}
	labels := dns.SplitDomainName(name)
	labels = labels[:len(labels)-dns.CountLabel(domain)]
	if len(labels) == 0 {
		return request{kind: kindApex}, true
	}
	last := len(labels) - 1
	switch rest := labels[:last]; labels[last] {
	case "svc":
		return parseService(rest), true
	case "pod":
		return parsePod(rest), true
	case "peer":
		return parsePeer(rest), true
	case "dns-version":
		return only(rest, 0, request{kind: kindVersion}), true
	case "dns":
		if len(rest) == 0 {
			return request{kind: kindBranch}, true
		}
		if rest[len(rest)-1] == "ns" {
			return only(rest, 1, request{kind: kindNS}), true
		}
	}
	return request{}, true
}

// only is req if there are exactly n labels, else unknown.
func only(labels []string, n int, req request) request {
	if len(labels) != n {
		return request{}
	}
	return req
}

func parseService(labels []string) request {
	n := len(labels)
	switch n {
	case 0:
		return request{kind: kindBranch}
	case 1:
		return request{kind: kindNamespace, namespace: labels[0]}
	}
	req := request{kind: kindService, namespace: labels[n-1], service: labels[n-2]}
	switch rest := labels[:n-2]; len(rest) {
	case 0:
		return req
	case 1:
		// "_tcp" alone exists for the sake of the ports below it.
		if proto, ok := strings.CutPrefix(rest[0], "_"); ok {
			req.protocol = proto
			return req
		}
		req.kind, req.host = kindEndpoint, rest[0]
		return req
	case 2:
		port, isPort := strings.CutPrefix(rest[0], "_")
		proto, isProto := strings.CutPrefix(rest[1], "_")
		if isPort && isProto && port != "" && proto != "" {
			req.port, req.protocol = port, proto
			return req
		}
	}
	return request{}
}

func parsePod(labels []string) request {
	switch len(labels) {
	case 0:
		return request{kind: kindBranch}
	case 1:
		return request{kind: kindNamespace, namespace: labels[0]}
	case 2:
		if ip, ok := dashedIP(labels[0]); ok {
			return request{kind: kindPod, namespace: labels[1], ip: ip}
		}
	}
	return request{}
}

func parsePeer(labels []string) request {
	if len(labels) == 0 {
		return request{kind: kindBranch}
	}
	return only(labels, 1, request{kind: kindPeer, host: labels[0]})
}

// dashedIP reads 10-42-0-7 or fd00--7.
func dashedIP(label string) (netip.Addr, bool) {
	for _, sep := range []string{".", ":"} {
		if ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep)); err == nil && ip.Zone() == "" {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// dashed is the reverse of dashedIP.
func dashed(ip netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(ip.String())
}

// parseReverse reads the address of a name below in-addr.arpa or ip6.arpa. The
// name must be canonical.
func parseReverse(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(v4, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		reverse(labels)
		ip, err := netip.ParseAddr(strings.Join(labels, "."))
		return ip, err == nil
	}
	if v6, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		nibbles := strings.Split(v6, ".")
		if len(nibbles) != 32 {
			return netip.Addr{}, false
		}
		reverse(nibbles)
		var b strings.Builder
		for i, nibble := range nibbles {
			if len(nibble) != 1 {
				return netip.Addr{}, false
			}
			if i > 0 && i%4 == 0 {
				b.WriteByte(':')
			}
			b.WriteString(nibble)
		}
		ip, err := netip.ParseAddr(b.String())
		return ip, err == nil && !ip.Is4In6()
	}
	return netip.Addr{}, false
}

func reverse(s []string) {
	for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
		s[i], s[j] = s[j], s[i]
	}
}
