// Package pathmtu finds how large the packets are that a path between two machines
// carries, as datagram packetization layer path MTU discovery does (RFC 8899): by packets
// that may not be fragmented and that the other end acknowledges. What routers say of it
// by ICMP makes the search shorter, but is neither needed nor believed.
//
// The packets are echo requests (RFC 792, RFC 4443), so that the kernel at the other end
// answers. Package network calls it for each other peer.
package pathmtu

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// ErrSilent is that no packet was answered, not even the smallest: the other end is away, or
// something on the path drops echo requests. Of the path's MTU it says nothing.
var ErrSilent = errors.New("no echo request is answered")

// Least is the smallest size that is asked for, in bytes: what each host of that IP family
// takes (RFC 791: 576; RFC 8200: 1280).
func Least(like netip.Addr) int {
	if like.Is6() {
		return 1280
	}
	return 576
}

// Find returns the size in bytes, with the IP header, of the largest packet that gets from
// one address, which is this machine's, to the other, of the same IP family. Larger ones
// than most are not asked for. The usual case, most itself, takes one packet each way; a
// smaller one takes some seconds where no router says what it drops. The error is [ErrSilent], that
// of the context, or of the socket. It needs root, and may be called concurrently.
func Find(ctx context.Context, from, to netip.Addr, most int) (int, error) {
	e, err := openEcho(from, to)
	if err != nil {
		return 0, fmt.Errorf("look for the path MTU to %s: %w", to, err)
	}
	defer e.close()
	mtu, err := search(min(Least(to), most), most, func(sizes []int) (answer, error) { return e.ask(ctx, sizes) })
	if err != nil {
		return 0, fmt.Errorf("look for the path MTU to %s: %w", to, err)
	}
	return mtu, nil
}
