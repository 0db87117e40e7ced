package overlay

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// userWireGuard is WireGuard in this process. Its device goes with the process;
// the unreachable route of the whole pod network then keeps pod packets from
// leaving by the default route.
type userWireGuard struct {
	cfg     Config
	link    netlink.Link
	greeter *greeter
}

func (w *userWireGuard) up() error {
	t, err := tun.CreateTUN(WireGuardDevice, w.cfg.MTU)
	if err != nil {
		return fmt.Errorf("create device %s: %w; is /dev/net/tun there and usable?", WireGuardDevice, err)
	}
	inside, outside := bounded(t, conn.NewDefaultBind(), w.cfg.MTU)
	if w.greeter, err = newGreeter(inside, outside, w.cfg.Key, w.cfg.Log); err != nil {
		return err
	}
	if err := w.greeter.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", w.cfg.Port)); err != nil {
		return fmt.Errorf("configure device %s: %w", WireGuardDevice, err)
	}
	if err := w.greeter.dev.Up(); err != nil {
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
	if !p.Hidden {
		fmt.Fprintf(&b, "endpoint=%s\n", netip.AddrPortFrom(p.Endpoint, uint16(w.cfg.Port)))
	}
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", int(p.keepalive().Seconds()))
	for _, cidr := range p.PodCIDRs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", cidr)
	}
	if err := w.greeter.dev.IpcSet(b.String()); err != nil {
		return err
	}
	if p.Alive {
		w.greeter.greet(p.WireGuardKey)
	}
	return nil
}

// forget makes the peer anew, where it was heard last: its session is void, and the time stamps
// of its new handshakes are refused if its clock has gone back (a machine without a battery).
func (w *userWireGuard) forget(p Peer) error {
	at := w.greeter.sessions()[p.WireGuardKey].endpoint
	if err := w.remove(p); err != nil || at == "" {
		return err
	}
	return w.greeter.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\n", hex.EncodeToString(p.WireGuardKey[:]), at))
}

func (w *userWireGuard) remove(p Peer) error {
	w.greeter.forget(p.WireGuardKey)
	return w.greeter.dev.IpcSet(fmt.Sprintf("public_key=%s\nremove=true\n", hex.EncodeToString(p.WireGuardKey[:])))
}

// prune has nothing to do: the device is as new as the process.
func (w *userWireGuard) prune([]Peer) error { return nil }

func (w *userWireGuard) route(Peer, netip.Prefix) (netlink.Route, error) {
	return netlink.Route{LinkIndex: w.link.Attrs().Index, Scope: netlink.SCOPE_LINK}, nil
}

// move has little to do: the other end learns where packets come from.
func (w *userWireGuard) move(_ netip.Addr, mtu int) error { return netlink.LinkSetMTU(w.link, mtu) }

func (w *userWireGuard) close() error {
	if w.greeter != nil {
		w.greeter.close()
	}
	return nil
}
