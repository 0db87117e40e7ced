package overlay

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/network/overlay/userwg"
	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// userWireGuard is WireGuard in a process of its own (package userwg), which outlives the
// daemon. If it ends, its device is gone; the unreachable route of the whole pod network then
// keeps pod packets from leaving by the default route.
type userWireGuard struct {
	cfg     Config
	link    netlink.Link
	process *userwg.Process
}

func (w *userWireGuard) up() error {
	p, err := userwg.Open(w.cfg.Command, userwg.Settings{
		Dir: w.cfg.Dir, Device: WireGuardDevice, Key: wgtypes.Key(w.cfg.Key), Port: w.cfg.Port, MTU: w.cfg.MTU,
	})
	if err != nil {
		return err
	}
	link, err := w.device()
	if err != nil {
		return errors.Join(err, p.Close()) // it runs on, for the next try
	}
	before := w.process
	w.process, w.link = p, link
	w.cfg.Began(p.Started)
	if before != nil {
		return before.Close()
	}
	return nil
}

// device makes the process's device ready for use.
func (w *userWireGuard) device() (netlink.Link, error) {
	link, err := netlink.LinkByName(WireGuardDevice)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", WireGuardDevice, err)
	}
	if err := netlink.LinkSetMTU(link, w.cfg.MTU); err != nil {
		return nil, fmt.Errorf("set MTU of %s: %w", WireGuardDevice, err)
	}
	if err := sysctl.Device(WireGuardDevice, w.cfg.ipv6()); err != nil {
		return nil, err
	}
	return link, netlink.LinkSetUp(link)
}

func (w *userWireGuard) add(p Peer, back bool) error {
	peer := userwg.Peer{Key: wgtypes.Key(p.WireGuardKey), AllowedIPs: p.PodCIDRs, Keepalive: p.keepalive(), Greet: p.Alive, Back: back}
	if !p.Hidden {
		peer.Endpoint = netip.AddrPortFrom(p.Endpoint, uint16(w.cfg.Port))
	}
	return w.process.Set(peer)
}

func (w *userWireGuard) remove(p Peer) error { return w.process.Remove(wgtypes.Key(p.WireGuardKey)) }

func (w *userWireGuard) prune(keep []Peer) error {
	var keys []wgtypes.Key
	for _, p := range keep {
		keys = append(keys, wgtypes.Key(p.WireGuardKey))
	}
	return w.process.Prune(keys)
}

func (w *userWireGuard) route(Peer, netip.Prefix) (netlink.Route, error) {
	return netlink.Route{LinkIndex: w.link.Attrs().Index, Scope: netlink.SCOPE_LINK}, nil
}

func (w *userWireGuard) inVain() ([]wgtypes.Key, error) { return w.process.InVain() }

// move has little to do, for the other end learns where packets come from. But the process has
// buffers for the MTU that it began with.
func (w *userWireGuard) move(_ netip.Addr, mtu int) error {
	w.cfg.MTU = mtu
	if mtu <= w.process.MTU {
		return netlink.LinkSetMTU(w.link, mtu)
	}
	return w.up()
}

func (w *userWireGuard) gone() <-chan struct{} { return w.process.Gone() }

func (w *userWireGuard) close() error {
	if w.process == nil { // it could not be brought up
		return nil
	}
	return w.process.Close()
}

func (w *userWireGuard) end() error { return w.process.End() }
