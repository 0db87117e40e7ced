package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	if err := n.retire(ctx); err != nil {
		return fmt.Errorf("change to network backend %s: %w", kind, err)
	}
	next, mtu, err := n.open(kind)
	if err != nil {
		return fmt.Errorf("change to network backend %s: %w", kind, err)
	}
	if err := n.hear(ctx, n.address, n.backend, kind); err != nil {
		return errors.Join(fmt.Errorf("change to network backend %s: %w", kind, err), next.Remove(), n.overlay.Restore())
	}
	if err := n.tolerant(next.SetPeers(n.measured())); err != nil {
		return errors.Join(fmt.Errorf("change to network backend %s: %w", kind, err), next.Remove(), n.overlay.Restore(), n.hear(ctx, n.address, n.backend))
	}
	n.log.Info("the network backend has changed", "from", n.backend, "to", kind, "mtu", mtu)
	n.old, n.oldBackend, n.overlay, n.backend = n.overlay, n.backend, next, kind
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

// Silent are the names of peers that live and do not answer the backend in use, as [overlay.Overlay.Silent]
// finds; none before Ready. It does not wait for them, but up to 6 s for a WireGuard process that hangs,
// and ends that, and up to a minute while one is started.
func (n *Network) Silent() ([]string, error) {
	n.overlayMu.Lock()
	o := n.overlay
	n.overlayMu.Unlock()
	if o == nil {
		return nil, nil
	}
	return o.Silent()
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
	if err := n.hear(ctx, address, n.backend, n.oldBackend); err != nil {
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
		Command: n.cfg.WireGuard, Dir: n.cfg.Dir, Began: n.cfg.Began,
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
func (n *Network) retire(ctx context.Context) error {
	if n.old != nil {
		if err := n.old.Remove(); err != nil {
			return fmt.Errorf("end the backend before: %w", err)
		}
		n.old, n.oldBackend = nil, ""
	}
	return n.hear(ctx, n.address, n.backend)
}

// hear lets in what other peers' pods send over these backends, and nobody else who says that he
// is a pod. Under overlayMu.
func (n *Network) hear(ctx context.Context, address netip.Addr, backends ...string) error {
	segments, err := segmentsOf(address, backends...)
	if err != nil || slices.Equal(segments, n.segments()) {
		return err
	}
	was := n.heard.Swap(&segments)
	if err := n.syncPods(ctx); err != nil {
		n.heard.Store(was)
		return err
	}
	return nil
}

// segments are the devices of [segmentsOf] that the rules let in now.
func (n *Network) segments() []string {
	if s := n.heard.Load(); s != nil {
		return *s
	}
	return nil
}

// segmentsOf are the devices, other than their own, by which those backends hear other peers' pods.
func segmentsOf(address netip.Addr, backends ...string) ([]string, error) {
	if !slices.Contains(backends, "direct") {
		return nil, nil
	}
	link, err := overlay.LinkOf(address)
	if err != nil {
		return nil, err
	}
	return []string{link.Attrs().Name}, nil
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

// close lets go of what setup opened.
func (n *Network) close() error {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	var err error
	for _, o := range []*overlay.Overlay{n.overlay, n.old} {
		if o != nil {
			err = errors.Join(err, o.Close())
		}
	}
	if n.guard != nil {
		err = errors.Join(err, n.guard.Close())
	}
	return err
}
