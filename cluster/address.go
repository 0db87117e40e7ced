package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// addressInterval is how often our own address is looked at: a system call, no packet.
const addressInterval = 2 * time.Second

// ErrNoAddress says that the machine has no address by which others could reach it.
var ErrNoAddress = errors.New("this machine has no network address yet; connect it, or give one with --advertise-address")

// FixedAddress advertises the address that the user gave.
func FixedAddress(a netip.Addr) func(netip.Addr, []netip.AddrPort) (netip.Addr, error) {
	return func(netip.Addr, []netip.AddrPort) (netip.Addr, error) { return a, nil }
}

// Advertiser finds the address by itself. The current one stays as long as the
// machine has it, so that a second interface does not make it flap; else it is the
// one from which the kernel reaches a known peer; else the first global one.
// No packet is sent. [ErrNoAddress].
func Advertiser(current netip.Addr, towards []netip.AddrPort) (netip.Addr, error) {
	ours, err := localAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	if current.IsValid() && slices.Contains(ours, current) {
		return current, nil
	}
	for _, t := range towards {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(t)) // connects, sends nothing
		if err != nil {
			continue // no route to this one; the next may have one
		}
		a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
		c.Close()
		if slices.Contains(ours, a) {
			return a, nil
		}
	}
	if len(ours) == 0 {
		return netip.Addr{}, ErrNoAddress
	}
	return ours[0], nil
}

// localAddrs lists the machine's global unicast addresses, IPv4 first.
func localAddrs() ([]netip.Addr, error) {
	ifAddrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list network addresses: %w", err)
	}
	var v4, v6 []netip.Addr
	for _, ia := range ifAddrs {
		n, ok := ia.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(n.IP)
		if a = a.Unmap(); !ok || !a.IsGlobalUnicast() {
			continue
		}
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return append(v4, v6...), nil
}

// advertise asks for our address, with the known peers to find the way by.
func (m *Members) advertise() (netip.Addr, error) {
	var towards []netip.AddrPort
	for _, x := range m.Snapshot() {
		if !x.Self && x.Address.IsValid() {
			towards = append(towards, netip.AddrPortFrom(x.Address, x.GossipPort))
		}
	}
	a, err := m.cfg.Advertise(m.Address(), towards)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find our address: %w", err)
	}
	return a.Unmap().WithZone(""), nil
}

// watchAddress moves gossip to another address when the machine has one. While
// it has none (the cable is out) nothing changes. It returns when ctx ends, or if
// gossip cannot be started again.
func (m *Members) watchAddress(ctx context.Context) error {
	t := time.NewTicker(addressInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		a, err := m.advertise()
		if err != nil {
			m.cfg.Log.Debug("our address is not known", "error", err)
			continue
		}
		if a == m.Address() {
			continue
		}
		m.cfg.Log.Info("our address changed", "from", m.Address(), "to", a)
		if err := m.move(a); err != nil {
			return err
		}
	}
}

// move starts gossip anew: memberlist cannot change an address. Saying goodbye
// lets the others take the new address at once, as they would refuse it of a living peer.
func (m *Members) move(a netip.Addr) error {
	if list := m.current(); list != nil {
		if err := list.Leave(time.Second); err != nil {
			m.cfg.Log.Debug("the old address is not given up properly; the others will find out", "error", err)
		}
	}
	if err := m.close(); err != nil {
		return err
	}
	m.table.lost(time.Now())
	return m.open(a)
}

// persist keeps peers.json: what is known of the others, written only when it changes.
func (m *Members) persist(ctx context.Context) {
	wake, cancel := m.Subscribe()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		var ks []known
		for _, x := range m.Snapshot() {
			if !x.Self && x.APIAddr() != "" {
				ks = append(ks, known{Name: x.Name, API: x.APIAddr(), Gossip: netip.AddrPortFrom(x.Address, x.GossipPort).String(), Key: x.Fingerprint})
			}
		}
		if err := saveKnown(m.cfg.Dir, ks); err != nil {
			m.cfg.Log.Error("known peers are not saved; after a cold boot they may not be found", "error", err)
		}
	}
}
