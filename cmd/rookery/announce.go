package main

import (
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/controller"
	"github.com/rundigitalplatform/rookery/network/announce"
	"github.com/rundigitalplatform/rookery/network/nft"
)

// balancerAddresses are the LAN's addresses that Services of type LoadBalancer may have.
func (c *config) balancerAddresses() ([]controller.AddressRange, error) {
	var out []controller.AddressRange
	for _, text := range c.LoadBalancer {
		r, err := controller.ParseAddressRange(text)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// announcer answers on the LAN for those addresses.
func (p *peer) announcer(pool []controller.AddressRange) *announce.Announcer {
	inf := p.api.Informers()
	var families []knftables.Family
	for _, r := range pool {
		if f := nft.FamilyOf(r.First); !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	a := announce.New(announce.Config{
		Services: inf.Core().V1().Services(), Slices: inf.Discovery().V1().EndpointSlices(),
		Peers: p.balancing, Changed: p.live.subscribe(), Self: p.id.Name(), Address: func() netip.Addr { return p.self().Address }, Families: families,
		Ours: func(a netip.Addr) bool {
			return slices.ContainsFunc(pool, func(r controller.AddressRange) bool { return r.Contains(a) })
		},
		Log: p.log.With("room", "network"),
	})
	p.network.announcer.Store(a)
	return a
}

// balancing are the peers that live and balance Services for others on the LAN: all but witnesses.
func (p *peer) balancing() (peers []announce.Peer) {
	records, err := p.registry.Peers()
	if err != nil {
		p.log.Error("peer records are not readable", "err", err)
		return nil
	}
	for _, r := range records {
		if r.Witness || r.Name != p.id.Name() && !p.live.alive(r.Name) {
			continue
		}
		seen, _ := p.members.Member(r.Name)
		peers = append(peers, announce.Peer{Name: r.Name, Addresses: p.addresses(r.Name), Hidden: seen.Hidden})
	}
	return peers
}
