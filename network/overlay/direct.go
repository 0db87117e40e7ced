package overlay

import (
	"github.com/vishvananda/netlink"
)

// direct sends packets to the peers as they are. It works where all peers are
// on one network segment and nothing there filters by source address.
type direct struct {
	cfg  Config
	link netlink.Link
}

func (d *direct) up() (link netlink.Link, err error) {
	d.link, err = LinkOf(d.cfg.Address)
	return d.link, err
}

func (d *direct) add(Peer, *Peer) error { return nil }
func (d *direct) remove(Peer) error     { return nil }
func (d *direct) prune([]Peer) error    { return nil }
func (d *direct) close() error          { return nil }

func (d *direct) route(p Peer) netlink.Route {
	return netlink.Route{LinkIndex: d.link.Attrs().Index, Gw: p.Endpoint.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
}
