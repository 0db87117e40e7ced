// Package refused tells which packets pods were not allowed to send or to get: in the log,
// once for each pod and reason, and as metrics.
//
// The rules that refuse (of packages network and policy) note what they refuse in sets whose
// elements count ([Reason.Rules]); the kernel limits and forgets them. A [Watcher] looks at
// them once a minute, and when somebody asks for metrics, so that nothing that pods do
// costs the daemon more than that. cmd/rookery runs one.
package refused

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Reason is why packets are refused.
type Reason string

const (
	Egress  Reason = "egress"  // the policies of the pod that sends
	Ingress Reason = "ingress" // the policies of the pod that it is for
	Source  Reason = "source"  // the address of the sender is not the pod's
)

// Reasons are all.
func Reasons() []Reason { return []Reason{Egress, Ingress, Source} }

const (
	// remember is how long the kernel keeps a flow that is refused no more: some readings.
	remember = 10 * time.Minute
	// limit bounds the memory that a pod can take by trying every port of everybody; what
	// comes when the set is full is refused without being counted.
	limit = 1024
)

// Set is the name of the set that the reason's rules need.
func (r Reason) Set() string { return "refused-" + string(r) }

// Add adds that set to the section that has the rules.
func (r Reason) Add(s nft.State, family knftables.Family) {
	kind := nft.AddressType(family) + " . inet_proto . inet_service"
	if r == Source {
		kind = "ifname . " + nft.AddressType(family)
	} else {
		kind = nft.AddressType(family) + " . " + kind
	}
	s.Sets[r.Set()] = nft.Set{Type: kind, Timeout: remember, Size: limit}
}

// Rules note a packet that what comes after them refuses. Of ICMP, its type and code stand for
// the port.
func (r Reason) Rules(family knftables.Family) []string {
	if r == Source {
		return []string{fmt.Sprintf("update @%s { iifname . %s saddr counter }", r.Set(), family)}
	}
	note := func(protocols, port string) string {
		return fmt.Sprintf("meta l4proto %s update @%s { %s saddr . %s daddr . meta l4proto . th %s counter }", protocols, r.Set(), family, family, port)
	}
	return []string{note("{ tcp, udp, sctp }", "dport"), note("!= { tcp, udp, sctp }", "sport")}
}

// flow is an element of a set.
type flow struct {
	device   string // of Source only
	from, to netip.Addr
	proto    byte
	port     uint16
}

func parse(r Reason, family knftables.Family, key []byte) (f flow, ok bool) {
	size := 4
	if family == knftables.IPv6Family {
		size = 16
	}
	if r == Source {
		if len(key) != unix.IFNAMSIZ+size {
			return f, false
		}
		f.device = strings.TrimRight(string(key[:unix.IFNAMSIZ]), "\x00")
		f.from, ok = netip.AddrFromSlice(key[unix.IFNAMSIZ:])
		return f, ok
	}
	if len(key) != 2*size+8 {
		return f, false
	}
	f.from, _ = netip.AddrFromSlice(key[:size])
	f.to, _ = netip.AddrFromSlice(key[size : 2*size])
	f.proto, f.port = key[2*size], binary.BigEndian.Uint16(key[2*size+4:])
	return f, true
}

// service is the protocol and the port.
func (f flow) service() string {
	switch f.proto {
	case unix.IPPROTO_TCP:
		return fmt.Sprintf("%d/tcp", f.port)
	case unix.IPPROTO_UDP:
		return fmt.Sprintf("%d/udp", f.port)
	case unix.IPPROTO_SCTP:
		return fmt.Sprintf("%d/sctp", f.port)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return fmt.Sprintf("icmp type %d", f.port>>8)
	}
	return fmt.Sprintf("protocol %d", f.proto)
}
