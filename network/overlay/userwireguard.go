package overlay

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// userWireGuard is WireGuard in this process. Its device goes with the process;
// the unreachable route of the whole pod network then keeps pod packets from
// leaving by the default route.
type userWireGuard struct {
	cfg  Config
	link netlink.Link
	dev  *device.Device
}

func (w *userWireGuard) up() error {
	t, err := tun.CreateTUN(WireGuardDevice, w.cfg.MTU)
	if err != nil {
		return fmt.Errorf("create device %s: %w; is /dev/net/tun there and usable?", WireGuardDevice, err)
	}
	log := &device.Logger{
		Verbosef: func(string, ...any) {}, // a line for each packet of a handshake
		Errorf: func(format string, args ...any) {
			w.cfg.Log.Debug("wireguard", "message", fmt.Sprintf(format, args...))
		},
	}
	inside, outside := bounded(t, conn.NewDefaultBind(), w.cfg.MTU)
	w.dev = device.NewDevice(inside, outside, log)
	if err := w.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(w.cfg.Key[:]), w.cfg.Port)); err != nil {
		return fmt.Errorf("configure device %s: %w", WireGuardDevice, err)
	}
	if err := w.dev.Up(); err != nil {
		return fmt.Errorf("listen on UDP port %d for WireGuard: %w", w.cfg.Port, err)
	}
	if w.link, err = netlink.LinkByName(WireGuardDevice); err != nil {
		return fmt.Errorf("find device %s: %w", WireGuardDevice, err)
	}
	if err := sysctl.Device(WireGuardDevice, w.cfg.ipv6()); err != nil {
		return err
	}
	return netlink.LinkSetUp(w.link)
}

func (w *userWireGuard) add(p Peer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.WireGuardKey[:]))
	fmt.Fprintf(&b, "endpoint=%s\n", netip.AddrPortFrom(p.Endpoint, uint16(w.cfg.Port)))
	b.WriteString("persistent_keepalive_interval=0\nreplace_allowed_ips=true\n")
	for _, cidr := range p.PodCIDRs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", cidr)
	}
	return w.dev.IpcSet(b.String())
}

func (w *userWireGuard) remove(p Peer) error {
	return w.dev.IpcSet(fmt.Sprintf("public_key=%s\nremove=true\n", hex.EncodeToString(p.WireGuardKey[:])))
}

// prune has nothing to do: the device is as new as the process.
func (w *userWireGuard) prune([]Peer) error { return nil }

func (w *userWireGuard) route(Peer, netip.Prefix) (netlink.Route, error) {
	return netlink.Route{LinkIndex: w.link.Attrs().Index, Scope: netlink.SCOPE_LINK}, nil
}

// move has little to do: the other end learns where packets come from.
func (w *userWireGuard) move(_ netip.Addr, mtu int) error { return netlink.LinkSetMTU(w.link, mtu) }

func (w *userWireGuard) close() error {
	if w.dev != nil {
		w.dev.Close()
	}
	return nil
}
