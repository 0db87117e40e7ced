// Package overlay carries packets between peers: a device and a route to each
// other peer's pod range.
//
// There are three backends. WireGuard encrypts (in the kernel where it can,
// otherwise in this process over a TUN device), VXLAN does not, Direct needs
// all peers on one network segment and adds nothing but routes.
// Who the peers are is package network's caller's business; it calls [Overlay.SetPeers].
package overlay

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// Names of the devices.
const (
	WireGuardDevice = "rookery-wg"
	VXLANDevice     = "rookery-vx"
)

// PeerRoutes marks routes to other peers ("proto 82"), so that leftovers of an
// earlier run can be told from everybody else's.
const PeerRoutes netlink.RouteProtocol = 82

// Key is a WireGuard public or private key.
type Key [32]byte

// Peer is another peer as far as packets are concerned.
type Peer struct {
	Name         string
	Endpoint     netip.Addr     // its address on the network between the machines
	Other        netip.Addr     // its address of the other IP family there; zero: none is known
	PodCIDRs     []netip.Prefix // its pod ranges, one of each family; the first address of each is its own
	WireGuardKey Key            // public; only looked at by WireGuard
	// Alive false withdraws the route, so that senders get an error at once
	// instead of silence. The rest is kept for its return.
	Alive bool
}

func (p Peer) equal(o Peer) bool {
	return p.Name == o.Name && p.Endpoint == o.Endpoint && p.Other == o.Other && slices.Equal(p.PodCIDRs, o.PodCIDRs) &&
		p.WireGuardKey == o.WireGuardKey && p.Alive == o.Alive
}

// Config is what an overlay is made from; all fields are required.
type Config struct {
	Own     netip.Addr // this peer's address on the pod network
	Address netip.Addr // this peer's address on the network between the machines
	Key     Key        // private
	Port    int        // UDP port of WireGuard
	MTU     int        // of the device, at most the backend's
	Log     *slog.Logger
}

// backend is one way to reach peers. Its methods are called one at a time.
type backend interface {
	// up makes the device exist, or adopts it, and returns it.
	up() (netlink.Link, error)
	// add makes a peer reachable; old is what it replaces, or nil.
	add(p Peer, old *Peer) error
	remove(p Peer) error
	// route is the route to p's pod range without destination, source and protocol.
	route(p Peer) netlink.Route
	// prune removes peers that the adopted device knows and keep does not.
	prune(keep []Peer) error
	close() error
}

// Overlay is a running backend. Its methods may be called concurrently.
type Overlay struct {
	cfg    Config
	device string // "" for one that needs none of its own
	b      backend

	mu     sync.Mutex
	peers  map[string]Peer
	synced bool // the first SetPeers has cleaned up what an earlier run left
}

// Overhead is what a backend takes from every packet, in bytes.
func Overhead(kind string) (int, error) {
	switch kind {
	case "wireguard":
		return 80, nil // outer IPv6 40, UDP 8, WireGuard 32
	case "vxlan":
		return 50, nil // outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14
	case "direct":
		return 0, nil
	}
	return 0, fmt.Errorf("unknown network backend %q: use wireguard, vxlan or direct", kind)
}

// Open brings the backend of that kind up, adopting a device that is already
// there. The caller closes it.
func Open(kind string, cfg Config) (*Overlay, error) {
	if _, err := Overhead(kind); err != nil {
		return nil, err
	}
	o := &Overlay{cfg: cfg, peers: map[string]Peer{}}
	switch kind {
	case "wireguard":
		b, err := newWireGuard(cfg)
		if err != nil {
			return nil, err
		}
		o.b, o.device = b, WireGuardDevice
	case "vxlan":
		o.b, o.device = &vxlan{cfg: cfg}, VXLANDevice
	case "direct":
		o.b = &direct{cfg: cfg}
	}
	if _, err := o.b.up(); err != nil {
		return nil, errors.Join(fmt.Errorf("bring up %s network: %w", kind, err), o.b.close())
	}
	return o, nil
}

// SetPeers makes peers (this one not among them) the ones that are reachable.
// It is idempotent, and only what changed since the last call is written. A peer
// that cannot be written does not keep the others from it; it is tried again by
// the next call.
func (o *Overlay) SetPeers(peers []Peer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	want := map[string]Peer{}
	for _, p := range peers {
		want[p.Name] = p
	}
	if !o.synced {
		if err := o.adopt(peers); err != nil {
			return err
		}
		o.synced = true
	}
	for _, name := range slices.Sorted(maps.Keys(o.peers)) {
		old := o.peers[name]
		w, ok := want[name]
		if ok && slices.Equal(w.PodCIDRs, old.PodCIDRs) && w.WireGuardKey == old.WireGuardKey {
			continue
		}
		// Gone, or another machine under the old name.
		if err := errors.Join(o.unroute(old), o.b.remove(old)); err != nil {
			errs = append(errs, fmt.Errorf("remove peer %s: %w", name, err))
			continue
		}
		delete(o.peers, name)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if err := o.set(want[name]); err != nil {
			errs = append(errs, fmt.Errorf("set peer %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (o *Overlay) set(p Peer) error {
	old, known := o.peers[p.Name]
	if known && old.equal(p) {
		return nil
	}
	if !known || old.Endpoint != p.Endpoint {
		var prev *Peer
		if known {
			prev = &old
		}
		if err := o.b.add(p, prev); err != nil {
			return err
		}
	}
	if err := o.reroute(p); err != nil {
		return err
	}
	o.peers[p.Name] = p
	return nil
}

func (o *Overlay) reroute(p Peer) error {
	if !p.Alive {
		return o.unroute(p)
	}
	r := o.b.route(p)
	r.Dst, r.Src, r.Protocol = ipNet(p.PodCIDRs[0]), o.cfg.Own.AsSlice(), PeerRoutes
	if err := netlink.RouteReplace(&r); err != nil {
		return fmt.Errorf("route %s: %w", p.PodCIDRs[0], err)
	}
	return nil
}

// Restore writes the routes to all peers again, after another overlay has taken them.
func (o *Overlay) Restore() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, p := range o.peers {
		errs = append(errs, o.reroute(p))
	}
	return errors.Join(errs...)
}

// Remove ends the backend for good and takes its device away.
func (o *Overlay) Remove() error {
	if err := o.Close(); err != nil || o.device == "" {
		return err
	}
	return DeleteLink(o.device)
}

// Close takes down what cannot outlive the process, and leaves the rest for the next start.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.close()
}
