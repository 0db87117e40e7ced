package userwg

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Peer is another peer as far as WireGuard is concerned.
type Peer struct {
	Key        wgtypes.Key    // public
	Endpoint   netip.AddrPort // zero: wherever its packets come from
	AllowedIPs []netip.Prefix
	Keepalive  time.Duration // how often it is sent something; 0: when there is something to send
	// Greet begins a session if there is none.
	Greet bool
	// Back: its end of the session is gone, or may be. What was agreed with it is
	// forgotten, but for where it was heard last.
	Back bool
}

// wireGuard is what the process does when it is asked.
type wireGuard struct{ greeter *greeter }

// set makes a peer known, or known anew.
func (w wireGuard) set(p Peer) error {
	if p.Back {
		if err := w.remake(p.Key); err != nil {
			return err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.Key[:]))
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
	}
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", int(p.Keepalive.Seconds()))
	for _, cidr := range p.AllowedIPs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", cidr)
	}
	if err := w.greeter.dev.IpcSet(b.String()); err != nil {
		return err
	}
	if p.Greet {
		w.greeter.greet(p.Key)
	}
	return nil
}

// remake makes the peer anew, where it was heard last: its session is void, and the time stamps
// of its new handshakes are refused if its clock has gone back (a machine without a battery).
func (w wireGuard) remake(peer wgtypes.Key) error {
	all, err := w.greeter.read()
	if err != nil {
		return err
	}
	at := all[peer].endpoint
	if err := w.remove(peer); err != nil || at == "" {
		return err
	}
	return w.greeter.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\n", hex.EncodeToString(peer[:]), at))
}

func (w wireGuard) remove(peer wgtypes.Key) error {
	w.greeter.forget(peer)
	return w.greeter.dev.IpcSet(fmt.Sprintf("public_key=%s\nremove=true\n", hex.EncodeToString(peer[:])))
}

// prune removes the peers that are not to be kept.
func (w wireGuard) prune(keep []wgtypes.Key) error {
	all, err := w.greeter.read()
	if err != nil {
		return err
	}
	for peer := range all {
		if !slices.Contains(keep, peer) {
			if err := w.remove(peer); err != nil {
				return err
			}
		}
	}
	return nil
}
