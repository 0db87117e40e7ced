package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// newWireGuard prefers the kernel's WireGuard over the one in a process.
func newWireGuard(cfg Config) (backend, error) {
	link, err := netlink.LinkByName(WireGuardDevice)
	switch {
	case err == nil && link.Type() == "wireguard":
		return &kernelWireGuard{cfg: cfg}, nil
	case err == nil: // a process has it, or had it just now
		return &userWireGuard{cfg: cfg}, nil
	case !errors.As(err, &netlink.LinkNotFoundError{}):
		return nil, fmt.Errorf("find device %s: %w", WireGuardDevice, err)
	}
	err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: WireGuardDevice, MTU: cfg.MTU, TxQLen: -1}})
	switch {
	case err == nil:
		return &kernelWireGuard{cfg: cfg}, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		cfg.Log.Info("the kernel has no WireGuard, running it in a process")
		return &userWireGuard{cfg: cfg}, nil
	}
	return nil, fmt.Errorf("create device %s: %w", WireGuardDevice, err)
}

// kernelWireGuard configures the kernel's WireGuard over generic netlink.
type kernelWireGuard struct {
	cfg  Config
	link netlink.Link
	ctl  *wgctrl.Client
}

func (w *kernelWireGuard) up() error {
	var err error
	if w.link, err = netlink.LinkByName(WireGuardDevice); err != nil {
		return fmt.Errorf("find device %s: %w", WireGuardDevice, err)
	}
	if w.ctl, err = wgctrl.New(); err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	key := wgtypes.Key(w.cfg.Key)
	if err := w.ctl.ConfigureDevice(WireGuardDevice, wgtypes.Config{PrivateKey: &key, ListenPort: &w.cfg.Port}); err != nil {
		return fmt.Errorf("configure device %s: %w", WireGuardDevice, err)
	}
	if err := netlink.LinkSetMTU(w.link, w.cfg.MTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", WireGuardDevice, err)
	}
	if err := sysctl.Device(WireGuardDevice, w.cfg.ipv6()); err != nil {
		return err
	}
	return netlink.LinkSetUp(w.link)
}

func (w *kernelWireGuard) configure(p wgtypes.PeerConfig) error {
	return w.ctl.ConfigureDevice(WireGuardDevice, wgtypes.Config{Peers: []wgtypes.PeerConfig{p}})
}

// add also greets the peer: the kernel sends a keepalive, and begins a handshake if there is no
// session, when the interval of keepalives becomes other than 0. It goes back to what
// it is to be: as a rule 0, for an idle cluster sends nothing.
//
// What was agreed with one that is back is kept: the kernel's sessions outlive daemons, and who has
// lost its own greets. Only one that this machine is hidden from cannot.
func (w *kernelWireGuard) add(p Peer, back bool) error {
	if back && p.HiddenFrom {
		if err := w.remove(p); err != nil {
			return err
		}
	}
	var allowed []net.IPNet
	for _, cidr := range p.PodCIDRs {
		allowed = append(allowed, *ipNet(cidr))
	}
	greet, then := time.Second, p.keepalive()
	if !p.Alive {
		greet = then
	}
	peer := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.WireGuardKey), PersistentKeepaliveInterval: &greet, ReplaceAllowedIPs: true, AllowedIPs: allowed,
	}
	if !p.Hidden {
		peer.Endpoint = &net.UDPAddr{IP: p.Endpoint.AsSlice(), Port: w.cfg.Port}
	}
	rest := wgtypes.PeerConfig{PublicKey: peer.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &then}
	return w.ctl.ConfigureDevice(WireGuardDevice, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer, rest}})
}

func (w *kernelWireGuard) remove(p Peer) error {
	return w.configure(wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.WireGuardKey), Remove: true})
}

func (w *kernelWireGuard) prune(keep []Peer) error {
	dev, err := w.ctl.Device(WireGuardDevice)
	if err != nil {
		return fmt.Errorf("read device %s: %w", WireGuardDevice, err)
	}
	for _, have := range dev.Peers {
		if slices.ContainsFunc(keep, func(p Peer) bool { return wgtypes.Key(p.WireGuardKey) == have.PublicKey }) {
			continue
		}
		if err := w.configure(wgtypes.PeerConfig{PublicKey: have.PublicKey, Remove: true}); err != nil {
			return fmt.Errorf("remove old peer: %w", err)
		}
	}
	return nil
}

// inVain are only those with which nothing was ever agreed: what the kernel has tried since, it
// does not say.
func (w *kernelWireGuard) inVain() ([]wgtypes.Key, error) {
	dev, err := w.ctl.Device(WireGuardDevice)
	if err != nil {
		return nil, fmt.Errorf("read device %s: %w", WireGuardDevice, err)
	}
	return neverMet(dev.Peers), nil
}

// neverMet are those that were sent three handshakes, one every 5 s, and with which none was agreed.
func neverMet(peers []wgtypes.Peer) (all []wgtypes.Key) {
	for _, p := range peers {
		if p.LastHandshakeTime.IsZero() && p.TransmitBytes >= 3*device.MessageInitiationSize {
			all = append(all, p.PublicKey)
		}
	}
	return all
}

func (w *kernelWireGuard) route(Peer, netip.Prefix) (netlink.Route, error) {
	return netlink.Route{LinkIndex: w.link.Attrs().Index, Scope: netlink.SCOPE_LINK}, nil
}

// move has little to do: the other end learns where packets come from.
func (w *kernelWireGuard) move(_ netip.Addr, mtu int) error { return netlink.LinkSetMTU(w.link, mtu) }

func (w *kernelWireGuard) gone() <-chan struct{} { return nil }

func (w *kernelWireGuard) end() error { return errors.Join(w.close(), DeleteLink(WireGuardDevice)) }

func (w *kernelWireGuard) close() error {
	if w.ctl == nil {
		return nil
	}
	return w.ctl.Close()
}
