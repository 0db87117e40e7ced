package pathmtu

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

func echoes() map[string]*echo {
	return map[string]*echo{
		"IPv4": {to: netip.MustParseAddr("192.0.2.2"), id: 0x1234, nonce: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}},
		"IPv6": {to: netip.MustParseAddr("2001:db8::2"), id: 0x1234, nonce: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}},
	}
}

// received is a packet as the socket hands it over: of IPv4 with its header.
func (e *echo) received(p []byte) []byte {
	if e.to.Is4() {
		return append(append([]byte{0x45}, make([]byte, ip4Header-1)...), p...)
	}
	return p
}

// Only what brings the whole request back is an answer.
func TestAnswers(t *testing.T) {
	for name, e := range echoes() {
		t.Run(name, func(t *testing.T) {
			whole := e.received(e.packet(1400))
			if got := e.answered(whole); got != 1400 {
				t.Fatalf("an answer of %d bytes counts as %d", len(whole), got)
			}
			for n := range whole {
				if got := e.answered(whole[:n]); got != 0 {
					t.Errorf("the first %d bytes of an answer count as %d", n, got)
				}
			}
			if got := e.answered(append(slices.Clone(whole), 0)); got != 0 {
				t.Errorf("more than an answer counts as %d", got)
			}
			at := len(whole) - (1400 - e.header()) // where ICMP begins; its checksum is the kernel's
			for i := at + 4; i < len(whole); i++ {
				forged := slices.Clone(whole)
				forged[i] ^= 1
				if got := e.answered(forged); got != 0 {
					t.Errorf("an answer with byte %d changed counts as %d", i-at, got)
				}
			}
		})
	}
}

func recvErr(level, kind int32, origin byte, info uint32) []byte {
	b := make([]byte, unix.CmsgSpace(16))
	h := unix.Cmsghdr{Level: level, Type: kind}
	h.SetLen(unix.CmsgLen(16))
	binary.NativeEndian.PutUint64(b, uint64(h.Len))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	data := b[unix.CmsgLen(0):]
	binary.NativeEndian.PutUint32(data, uint32(unix.EMSGSIZE))
	data[4] = origin
	binary.NativeEndian.PutUint32(data[8:], info)
	return b
}

// A router is heard that quotes what was sent, and this machine itself.
func TestRefusals(t *testing.T) {
	sizes := []int{1280, 1400, 1500}
	for name, e := range echoes() {
		t.Run(name, func(t *testing.T) {
			level, kind, origin, least := int32(unix.IPPROTO_IP), int32(unix.IP_RECVERR), byte(unix.SO_EE_ORIGIN_ICMP), icmpHeader
			if e.to.Is6() {
				level, kind, origin, least = unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.SO_EE_ORIGIN_ICMP6, icmpHeader+16
			}
			hear := func(quoted []byte, origin byte, info uint32) *round {
				r := &round{refused: map[int]bool{}}
				e.tooLarge(quoted, recvErr(level, kind, origin, info), sizes, r)
				return r
			}
			sent := e.packet(1500)
			for n := range sent {
				r := hear(sent[:n], origin, 1400)
				if n >= least != r.refused[1500] || len(r.refused) > 1 || r.refused[1500] != (r.hint == 1400) {
					t.Fatalf("with %d bytes quoted: %+v", n, r)
				}
			}
			other := &echo{to: e.to, id: e.id, nonce: [16]byte{9}}
			if r := hear(other.packet(1500), origin, 1400); len(r.refused) != 0 || r.hint != 0 {
				t.Errorf("a forger was believed: %+v", r)
			}
			if r := hear(nil, unix.SO_EE_ORIGIN_LOCAL, 1400); r.refused[1400] || !r.refused[1500] || r.hint != 1400 {
				t.Errorf("this machine's own word: %+v", r)
			}
			if r := hear(sent, origin, 1<<32-1); r.hint > 1<<16 {
				t.Errorf("a router carries %d", r.hint)
			}
		})
	}
}

// Whatever comes, nothing falls over.
func TestGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, e := range echoes() {
		for range 20000 {
			p := make([]byte, r.IntN(200))
			for i := range p {
				p[i] = byte(r.IntN(256))
			}
			e.tooLarge(p, p[r.IntN(len(p)+1):], []int{1400}, &round{refused: map[int]bool{}})
			if e.answered(p) != 0 || e.ours(p) {
				t.Fatalf("garbage was taken: %x", p)
			}
			quotedDestination(p, e.to.Is4())
		}
	}
}

func TestQuotedDestination(t *testing.T) {
	for name, e := range echoes() {
		t.Run(name, func(t *testing.T) {
			p := make([]byte, icmpHeader+e.header())
			var at, protocol, echo int
			if e.to.Is4() {
				p[0], p[1], at, protocol, echo = byte(ipv4.ICMPTypeDestinationUnreachable), fragNeeded, icmpHeader+16, icmpHeader+9, unix.IPPROTO_ICMP
			} else {
				p[0], at, protocol, echo = byte(ipv6.ICMPTypePacketTooBig), icmpHeader+24, icmpHeader+6, unix.IPPROTO_ICMPV6
			}
			copy(p[at:], e.to.AsSlice())
			p = e.received(p)
			if got := quotedDestination(p, e.to.Is4()); got != e.to {
				t.Errorf("too large on the way to %v, want %v", got, e.to)
			}
			for n := range p {
				if got := quotedDestination(p[:n], e.to.Is4()); got.IsValid() {
					t.Errorf("the first %d bytes say it of %v", n, got)
				}
			}
			quoted := len(p) - e.header() - icmpHeader
			p[quoted+protocol] = byte(echo)
			if got := quotedDestination(p, e.to.Is4()); got.IsValid() {
				t.Errorf("of a search's own packet it is said of %v", got)
			}
			p[quoted+protocol] = unix.IPPROTO_UDP
			p[quoted] = 1
			if got := quotedDestination(p, e.to.Is4()); got.IsValid() {
				t.Errorf("another message says it of %v", got)
			}
		})
	}
}
