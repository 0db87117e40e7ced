package main

import (
	"fmt"
	"slices"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

// unmet says why neither this peer nor the other one can dial the other; nil if one can, or
// that one does not live.
func (p *peer) unmet(m cluster.Member) error {
	if m.Self || !m.State.Up() || p.port.Linked(m.Name) {
		return nil
	}
	return p.keepers.Meeting(m.Name).Err
}

// meetings are what is wrong between this peer and those that live.
func (p *peer) meetings(s admin.Status) (all []admin.Problem) {
	silent, err := p.network.Silent()
	if err != nil {
		all = append(all, admin.Problem{What: "which peers answer this one on the pod network is not known: " + err.Error(), Do: "see the log of rookery on this peer; what has ended is brought up again by itself"})
	}
	for _, peer := range s.Peers {
		m, ok := p.members.Member(peer.Name)
		if !ok || m.Self || !m.State.Up() {
			continue
		}
		if err := p.unmet(m); err != nil {
			all = append(all, admin.Problem{
				What: fmt.Sprintf("peer %s and this one cannot dial each other: neither pods nor logs nor the cluster's state pass between them: %s", peer.Name, err),
				Do:   fmt.Sprintf("let one of the two be dialled: its firewall or router has to let in %d/tcp, %d/tcp and udp, and %d/udp", p.cfg.Port, p.cfg.GossipPort, p.cfg.WireGuardPort)})
			continue
		}
		if slices.Contains(silent, peer.Name) {
			all = append(all, admin.Problem{
				What: fmt.Sprintf("pods of this peer and of %s do not reach each other: it lives, and has answered none of WireGuard's handshakes when there was last something to send", peer.Name),
				Do:   fmt.Sprintf("let %d/udp pass in both directions between the two machines (%s), then look again: rookery net check", p.cfg.WireGuardPort, peer.Address)})
			continue
		}
		why := p.keepers.Meeting(peer.Name).Undialled
		if s.Network == "wireguard" || !peer.Hidden && why == "" {
			continue
		}
		who, whom := "this peer", peer.Name
		if !peer.Hidden {
			who, whom = whom, who
		}
		all = append(all, admin.Problem{
			What: fmt.Sprintf("pods of this peer and of %s may not reach each other: %s cannot dial %s, and the network %s needs both directions", peer.Name, who, whom, s.Network),
			Do:   fmt.Sprintf("`rookery net use wireguard`, which does with one; or let %s be dialled", whom)})
	}
	return all
}
