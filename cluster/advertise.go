package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// addressInterval is how often our own address is looked at: a system call, no packet.
const addressInterval = 2 * time.Second

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
		m.lookForOther(a)
		if a == m.Address() {
			continue
		}
		m.cfg.Log.Info("our address changed", "from", m.Address(), "to", a)
		if err := m.move(a); err != nil {
			return err
		}
	}
}

// lookForOther keeps what [Members.OtherAddress] says. An IPv6 address comes later than the
// daemon, when a router announces its network.
func (m *Members) lookForOther(advertised netip.Addr) {
	if m.cfg.Other == nil {
		return
	}
	found, err := m.cfg.Other(advertised, m.OtherAddress())
	if err != nil {
		m.cfg.Log.Warn("our address of the other IP family is not known", "error", err)
		return
	}
	m.mu.Lock()
	changed := found != m.other
	m.other = found
	m.mu.Unlock()
	if changed {
		m.cfg.Log.Info("our address of the other IP family", "address", found)
		m.table.changed()
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
