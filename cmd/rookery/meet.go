package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

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

// astray says that the others look for this peer where it is not: at an address that was given, and
// that this machine does not have. While they find it nevertheless (a router passes that on), nothing
// is wrong; nor while this peer is alone.
func (p *peer) astray(s admin.Status) []admin.Problem {
	given, err := netip.ParseAddr(p.cfg.AdvertiseAddress)
	if err != nil || given.IsLoopback() { // none was given; a wrong one is no start
		return nil
	}
	self, _ := p.members.Member(p.id.Name())
	met := slices.ContainsFunc(s.Peers, func(peer admin.PeerInfo) bool {
		m, ok := p.members.Member(peer.Name)
		return ok && !m.Self && m.State.Up()
	})
	if len(s.Peers) < 2 || met && !self.Hidden {
		return nil
	}
	have, err := cluster.Addresses(p.id.Settings().Networks())
	if err != nil {
		return []admin.Problem{{What: "this machine's addresses are not known: " + err.Error(), Do: "see `ip address`"}}
	}
	if slices.Contains(have, given.Unmap()) {
		return nil
	}
	return []admin.Problem{{
		What: fmt.Sprintf("the others look for this peer at %s, its advertise-address, which this machine does not have (it has %v)", given, have),
		Do:   "give this machine that address again; or change advertise-address, or leave it out, in rookery's configuration here, and restart rookery"}}
}

// silent is [network.Network.Silent] within 3 s: it waits where the network is being brought up again,
// and that is when somebody asks.
func (p *peer) silent(ctx context.Context) ([]string, error) {
	type answer struct {
		names []string
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		names, err := p.network.Silent()
		answers <- answer{names, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	select {
	case a := <-answers:
		return a.names, a.err
	case <-ctx.Done():
		return nil, errors.New("the network between the peers is being brought up or changed")
	}
}

// meetings are what is wrong between this peer and those that live.
func (p *peer) meetings(ctx context.Context, s admin.Status) (all []admin.Problem) {
	silent, err := p.silent(ctx)
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
