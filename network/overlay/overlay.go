// Package overlay carries packets between peers: a device and a route to each
// other peer's pod range.
//
// There are three backends. WireGuard encrypts (in the kernel where it can,
// otherwise in this process over a TUN device), VXLAN does not, Direct needs
// all peers on one network segment and adds nothing but routes.
// Who the peers are is package network's caller's business; it calls [Overlay.SetPeers].
package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
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
	PathMTU      int            // of the way to Endpoint, in bytes; zero: as much as the backend ever sends
	// Started is when its WireGuard did, by that machine's clock, if that is a process; zero: not known.
	Started time.Time
	// Hidden: this machine cannot send to Endpoint before it has heard from the peer (NAT, a
	// firewall). WireGuard learns from the peer's packets where it is; the others cannot.
	Hidden bool
	// HiddenFrom: the peer cannot send to this machine before it has heard from it, so WireGuard
	// sends something now and then.
	HiddenFrom bool
	// Alive false withdraws the route, so that senders get an error at once
	// instead of silence. The rest is kept for its return.
	Alive bool
}

func (p Peer) equal(o Peer) bool {
	return p.Name == o.Name && p.Other == o.Other && slices.Equal(p.PodCIDRs, o.PodCIDRs) &&
		p.WireGuardKey == o.WireGuardKey && p.Started.Equal(o.Started) && p.PathMTU == o.PathMTU && p.Alive == o.Alive && p.sight(o)
}

// back tells whether p's WireGuard has restarted since it was o, or may have: it was away.
func (p Peer) back(o Peer) bool {
	known := !o.Started.IsZero() && !p.Started.IsZero()
	return p.Alive && (known && !p.Started.Equal(o.Started) || !known && !o.Alive)
}

// sight tells whether the way between the machines is as it was.
func (p Peer) sight(o Peer) bool {
	return p.Endpoint == o.Endpoint && p.Hidden == o.Hidden && p.HiddenFrom == o.HiddenFrom
}

// hiddenKeepalive is what WireGuard itself advises: NAT forgets a UDP flow after 30 s or more.
const hiddenKeepalive = 25 * time.Second

// keepalive is how often WireGuard sends something to the peer. 0: an idle cluster sends nothing.
func (p Peer) keepalive() time.Duration {
	if p.HiddenFrom {
		return hiddenKeepalive
	}
	return 0
}

// address is that of the machine in the family of like; zero if it has none.
func (p Peer) address(like netip.Addr) netip.Addr {
	for _, a := range []netip.Addr{p.Endpoint, p.Other} {
		if a.IsValid() && a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Config is what an overlay is made from; all fields are required.
type Config struct {
	Own     []netip.Addr // this peer's addresses on the pod network, one of each IP family
	Address netip.Addr   // this peer's address on the network between the machines
	Key     Key          // private
	Port    int          // UDP port of WireGuard
	MTU     int          // of the device, at most the backend's
	Log     *slog.Logger
	// Command runs [userwg.Run], for WireGuard where the kernel has none; Dir is where its
	// socket is. Began is told when the process did, whenever there is another; it must not block.
	Command []string
	Dir     string
	Began   func(time.Time)
}

// ipv6 tells whether the pod network has IPv6.
func (c Config) ipv6() bool { return slices.ContainsFunc(c.Own, netip.Addr.Is6) }

// own is this peer's address in the family of a range, zero if it has none.
func (c Config) own(cidr netip.Prefix) netip.Addr {
	for _, a := range c.Own {
		if a.Is4() == cidr.Addr().Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// backend is one way to reach peers. Its methods are called one at a time.
type backend interface {
	// up makes the device exist, or adopts it.
	up() error
	// add makes a peer reachable, also where it was known at another endpoint. One that is back
	// may have forgotten what was agreed with it.
	add(p Peer, back bool) error
	remove(p Peer) error
	// route is the route to cidr, a pod range of p, without destination, source and protocol.
	route(p Peer, cidr netip.Prefix) (netlink.Route, error)
	// prune removes peers that the adopted device knows and keep does not.
	prune(keep []Peer) error
	// move follows this machine to another address, with another MTU of the device; entries of
	// peers may be gone then.
	move(address netip.Addr, mtu int) error
	// gone is closed when what up made has ended by itself; nil: it cannot.
	gone() <-chan struct{}
	// close ends only what cannot outlive this process.
	close() error
	// end takes away what up made.
	end() error
}

// Overlay is a running backend. Its methods may be called concurrently.
type Overlay struct {
	cfg  Config
	kind string
	b    backend
	// end ends what runs, which ctx is of.
	ctx context.Context
	end context.CancelFunc

	mu     sync.Mutex
	peers  map[string]known
	synced bool // the first SetPeers has cleaned up what an earlier run left
}

// known is a peer as it was last written, perhaps in part.
type known struct {
	Peer
	added bool // the backend has it at this endpoint
	whole bool // and so have the routes
}

// ValidKind says what is wrong with the name of a backend.
func ValidKind(kind string) error {
	switch kind {
	case "wireguard", "vxlan", "direct":
		return nil
	}
	return fmt.Errorf("unknown network backend %q: use wireguard, vxlan or direct", kind)
}

// Open brings the backend of that kind up, adopting a device that is already
// there. The caller closes it.
func Open(kind string, cfg Config) (*Overlay, error) {
	if err := ValidKind(kind); err != nil {
		return nil, err
	}
	o := &Overlay{cfg: cfg, kind: kind, peers: map[string]known{}}
	switch kind {
	case "wireguard":
		b, err := newWireGuard(cfg)
		if err != nil {
			return nil, err
		}
		o.b = b
	case "vxlan":
		o.b = &vxlan{cfg: cfg}
	case "direct":
		o.b = &direct{cfg: cfg}
	}
	if err := o.b.up(); err != nil {
		return nil, errors.Join(fmt.Errorf("bring up %s network: %w", kind, err), o.b.close())
	}
	o.ctx, o.end = context.WithCancel(context.Background())
	if gone := o.b.gone(); gone != nil {
		go o.heal(gone)
	}
	return o, nil
}

const (
	healAgain  = time.Second // after a failure, twice that after the next, and so on
	healSeldom = time.Minute // at most; what has lasted that long was well
)

// heal brings the backend up again whenever it has ended by itself, with the peers of then.
func (o *Overlay) heal(gone <-chan struct{}) {
	var wait time.Duration
	var up time.Time
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-gone:
		}
		if time.Since(up) > healSeldom {
			wait = 0
		}
		for {
			select {
			case <-o.ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(max(2*wait, healAgain), healSeldom)
			var err error
			if gone, err = o.again(); err == nil {
				break
			}
			o.cfg.Log.Error("the network between the peers has ended and is not whole again, trying once more", "backend", o.kind, "err", err, "in", wait)
		}
		up = time.Now()
	}
}

// again brings an open backend up anew, if it has ended, and writes what is missing of the peers.
func (o *Overlay) again() (gone <-chan struct{}, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx.Err() != nil {
		return nil, nil
	}
	select {
	case <-o.b.gone():
		o.cfg.Log.Warn("the network between the peers has ended, bringing it up again", "backend", o.kind)
		o.unwritten()
		if err := o.b.up(); err != nil {
			return nil, err
		}
	default: // it was, in the meantime
	}
	var errs []error
	for _, p := range o.peers {
		errs = append(errs, o.set(p.Peer))
	}
	return o.b.gone(), errors.Join(errs...)
}

// unwritten makes the next [Overlay.SetPeers] write all peers. Under mu.
func (o *Overlay) unwritten() {
	for name, p := range o.peers {
		o.peers[name] = known{Peer: p.Peer}
	}
}

// SetPeers makes peers (this one not among them) the ones that are reachable.
// It is idempotent, and only what changed since the last call is written. A peer
// that cannot be written does not keep the others from it; it is tried again by
// the next call, which is of no use for one that lacks an address ([OnlyNoAddress]).
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
		if err := errors.Join(o.unroute(old.Peer), o.b.remove(old.Peer)); err != nil {
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
	old := o.peers[p.Name]
	if p.Started.IsZero() { // its daemon has just begun and will say, or its kernel has WireGuard now
		p.Started = old.Started
	}
	if old.whole && old.equal(p) {
		return nil
	}
	back := old.added && p.back(old.Peer)
	if back || !old.added || p.Alive && !old.Alive || !p.sight(old.Peer) {
		if err := o.b.add(p, back); err != nil {
			return err
		}
	}
	err := o.reroute(p)
	o.peers[p.Name] = known{p, true, err == nil}
	return err
}

// reroute writes the routes to p's ranges of those families that this peer has too.
func (o *Overlay) reroute(p Peer) error {
	if !p.Alive {
		return o.unroute(p)
	}
	var errs []error
	for _, cidr := range p.PodCIDRs {
		own := o.cfg.own(cidr)
		if !own.IsValid() {
			continue
		}
		r, err := o.b.route(p, cidr)
		if err != nil { // what was written before leads where the peer is no more
			errs = append(errs, fmt.Errorf("route %s: %w", cidr, err), o.unrouteTo(cidr))
			continue
		}
		r.Dst, r.Src, r.Protocol = ipNet(cidr), own.AsSlice(), PeerRoutes
		if mtu := o.routeMTU(p, cidr); mtu < o.cfg.MTU {
			// Locked: else kernels before 5.10, and all of IPv6, look at the device's when they forward.
			r.MTU, r.MTULock = mtu, true
		}
		if err := netlink.RouteReplace(&r); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", cidr, err))
		}
	}
	return errors.Join(errs...)
}

// routeMTU is what pods can send to a range of p in one packet: at most the device's MTU, and of
// IPv6 at least what each sender may take for granted.
func (o *Overlay) routeMTU(p Peer, cidr netip.Prefix) int {
	mtu := o.cfg.MTU
	if p.PathMTU > 0 {
		mtu = min(mtu, Room(o.kind, p.PathMTU, p.Endpoint))
	}
	if cidr.Addr().Is6() {
		mtu = max(mtu, MinIPv6)
	}
	return mtu
}

// Silent are the names of peers that live and answer none of WireGuard's handshakes, as far as it has
// begun any; the other backends know of none. One that answers now is among them until there was
// something to send to it.
func (o *Overlay) Silent() (names []string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, ok := o.b.(interface{ inVain() ([]wgtypes.Key, error) })
	if !ok {
		return nil, nil
	}
	keys, err := w.inVain()
	if err != nil {
		return nil, fmt.Errorf("ask WireGuard who answers: %w", err)
	}
	for name, p := range o.peers {
		if p.Alive && slices.Contains(keys, wgtypes.Key(p.WireGuardKey)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Move follows this machine to another address on the network between the machines. What
// was made for the old one is made anew by the next [Overlay.SetPeers].
func (o *Overlay) Move(address netip.Addr, mtu int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unwritten()
	if err := o.b.move(address, mtu); err != nil {
		return fmt.Errorf("move to %s: %w", address, err)
	}
	o.cfg.Address, o.cfg.MTU = address, mtu
	return nil
}

// Restore writes the routes to all peers again, after another overlay has taken them.
func (o *Overlay) Restore() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, p := range o.peers {
		errs = append(errs, o.reroute(p.Peer))
	}
	return errors.Join(errs...)
}

// Remove ends the backend for good and takes its device away.
func (o *Overlay) Remove() error { return o.finish(backend.end) }

// Close takes down what cannot outlive the process, and leaves the rest for the next start.
func (o *Overlay) Close() error { return o.finish(backend.close) }

func (o *Overlay) finish(end func(backend) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end()
	return end(o.b)
}
