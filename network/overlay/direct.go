package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// noAddress is that a peer's machine has no address of an IP family in which the backend
// needs one.
type noAddress string

func (e noAddress) Error() string { return string(e) }

// OnlyNoAddress tells whether an error of [Overlay.SetPeers] says nothing but that machines of
// peers have no address of an IP family in which the backend needs one: all else is written,
// and trying again changes nothing. It is false for nil.
func OnlyNoAddress(err error) bool {
	switch e := err.(type) {
	case noAddress:
		return true
	case interface{ Unwrap() error }:
		return OnlyNoAddress(e.Unwrap())
	case interface{ Unwrap() []error }:
		return len(e.Unwrap()) > 0 && !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !OnlyNoAddress(err) })
	}
	return false
}

// direct sends packets to the peers as they are. It works where all peers are
// on one network segment and nothing there filters by source address.
type direct struct {
	cfg  Config
	link netlink.Link
}

func (d *direct) up() error { return d.move(d.cfg.Address, d.cfg.MTU) }

func (d *direct) add(Peer, bool) error { return nil }
func (d *direct) remove(Peer) error    { return nil }
func (d *direct) prune([]Peer) error   { return nil }

func (d *direct) move(address netip.Addr, _ int) error {
	link, err := LinkOf(address)
	if err == nil {
		d.link = link
	}
	return err
}

func (d *direct) gone() <-chan struct{} { return nil }

func (d *direct) close() error { return nil }

func (d *direct) end() error { return nil }

func (d *direct) route(p Peer, cidr netip.Prefix) (netlink.Route, error) {
	via := p.address(cidr.Addr())
	if !via.IsValid() {
		family := "IPv4"
		if cidr.Addr().Is6() {
			family = "IPv6"
		}
		return netlink.Route{}, noAddress(fmt.Sprintf("the machine %s has no %s address beside %s, which the backend direct needs for its pods' %s addresses: "+
			"give it one on the same device and start its peer again, or use another backend (rookery net use wireguard)", p.Name, family, p.Endpoint, family))
	}
	return netlink.Route{LinkIndex: d.link.Attrs().Index, Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}, nil
}
