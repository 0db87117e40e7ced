package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rundigitalplatform/rookery/network/overlay"
)

// lingerFor is how long a peer that has changed to another backend still takes what
// comes by the old one: the other peers change within seconds of each other.
const lingerFor = 30 * time.Second

// Use changes the backend of a running network; nothing happens if it is the one in
// use. Peers that have changed hear those that have not, for half a minute, but not the
// other way round, so the interruption lasts until the slower of two has changed. Pods
// keep their devices; what they send that is too large now is answered as path MTU
// discovery wants it (RFC 1191). On an error the old backend stays. That the new one cannot
// reach a peer in an IP family for want of an address ([overlay.OnlyNoAddress]) is none: the next
// SetPeers tells it. It waits for Ready.
func (n *Network) Use(ctx context.Context, kind string) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	if kind == n.backend {
		return nil
	}
	// Changed back soon: the device is made anew, because its routes went to the other.
	if err := n.retire(); err != nil {
		return fmt.Errorf("change to network backend %s: %w", kind, err)
	}
	next, mtu, err := n.open(kind)
	if err != nil {
		return fmt.Errorf("change to network backend %s: %w", kind, err)
	}
	if err := n.tolerant(next.SetPeers(n.measured())); err != nil {
		return errors.Join(fmt.Errorf("change to network backend %s: %w", kind, err), next.Remove(), n.overlay.Restore())
	}
	n.log.Info("the network backend has changed", "from", n.backend, "to", kind, "mtu", mtu)
	n.old, n.overlay, n.backend = n.overlay, next, kind
	n.mtu.Store(int32(mtu))
	n.watchPaths()
	select {
	case n.changed <- struct{}{}:
	default:
	}
	return nil
}

// Backend is the one in use, "" before Ready. It does not block for long.
func (n *Network) Backend() string {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	return n.backend
}

// SetAddress follows this machine to another address on the network between the
// machines, which it has already; nothing happens if it is the one in use. Peers that
// cannot be written for the new one do not undo it: the next SetPeers tries them again. On
// another error it is as before, or tried again by the next call. It waits for Ready.
func (n *Network) SetAddress(ctx context.Context, address netip.Addr) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	if address == n.address {
		return nil
	}
	mtu, err := n.mtuAt(n.backend, address)
	if err != nil {
		return fmt.Errorf("follow this machine to its new address: %w", err)
	}
	if err := n.overlay.Move(address, mtu); err != nil {
		return fmt.Errorf("follow this machine to its new address: %w", err)
	}
	n.log.Info("this machine has another address", "was", n.address, "is", address, "mtu", mtu)
	n.address = address
	n.mtu.Store(int32(mtu))
	n.watchPaths()
	if len(n.peers) == 0 { // perhaps not known yet: what an earlier run left stays
		return nil
	}
	if err := n.tolerant(n.overlay.SetPeers(n.measured())); err != nil {
		return fmt.Errorf("follow this machine to its new address: %w", err)
	}
	return nil
}

// tolerant is err without what stays so until a machine has another address.
func (n *Network) tolerant(err error) error {
	if !overlay.OnlyNoAddress(err) {
		return err
	}
	n.log.Warn("not every peer is reached in each IP family", "error", err)
	return nil
}

// open brings a backend up, and returns what MTU pods have over it.
func (n *Network) open(kind string) (*overlay.Overlay, int, error) {
	mtu, err := n.mtuAt(kind, n.address)
	if err != nil {
		return nil, 0, err
	}
	o, err := overlay.Open(kind, overlay.Config{
		Own: n.own(), Address: n.address, Key: n.cfg.Key, Port: n.cfg.Port, MTU: mtu, Log: n.log,
	})
	return o, mtu, err
}

// mtuAt is what a backend leaves of the device that has the address.
func (n *Network) mtuAt(kind string, address netip.Addr) (int, error) {
	under := n.cfg.MTU
	if under == 0 {
		link, err := overlay.LinkOf(address)
		if err != nil {
			return 0, err
		}
		under = link.Attrs().MTU
	}
	mtu := under - overlay.Overhead(kind, address)
	if n.cfg.ipv6() && mtu < overlay.MinIPv6 {
		return 0, fmt.Errorf("the network between the machines carries %d bytes, of which %s leaves %d: IPv6 pods need %d (RFC 8200)", under, kind, mtu, overlay.MinIPv6)
	}
	return mtu, nil
}

// retire ends a backend that is in use no longer. Under overlayMu.
func (n *Network) retire() error {
	if n.old == nil {
		return nil
	}
	if err := n.old.Remove(); err != nil {
		return fmt.Errorf("end the backend before: %w", err)
	}
	n.old = nil
	return nil
}

// SetPeers makes the other peers of the cluster reachable, and only them. It is
// idempotent and writes only what changed; for some errors see [overlay.OnlyNoAddress]. It waits for Ready.
func (n *Network) SetPeers(ctx context.Context, peers []Peer) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	n.peers = peers
	n.watchPaths()
	return n.overlay.SetPeers(n.measured())
}

func (n *Network) closeOverlays() error {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	var err error
	for _, o := range []*overlay.Overlay{n.overlay, n.old} {
		if o != nil {
			err = errors.Join(err, o.Close())
		}
	}
	return err
}
