package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
)

// settings are those of the cluster that this machine would make.
func (c *config) settings() (identity.Settings, error) {
	s := identity.Settings{Domain: c.ClusterDomain, Backend: c.Network}
	families := len(c.PodCIDR)
	if families < 1 || families > 2 || len(c.ServiceCIDR) != families || len(c.ClusterDNS) > 0 && len(c.ClusterDNS) != families {
		return s, fmt.Errorf("--pod-cidr %q, --service-cidr %q and --cluster-dns %q: each needs one value, or one for IPv4 and one for IPv6 in the same order, such as 10.42.0.0/16,fd42::/56", c.PodCIDR, c.ServiceCIDR, c.ClusterDNS)
	}
	ranges := make([]identity.Ranges, families)
	for i := range ranges {
		r, err := &ranges[i], error(nil)
		if r.PodCIDR, err = netip.ParsePrefix(c.PodCIDR[i]); err != nil || r.PodCIDR != r.PodCIDR.Masked() {
			return s, fmt.Errorf("--pod-cidr %q is not a network such as 10.42.0.0/16 or fd42::/56", c.PodCIDR[i])
		}
		if r.ServiceCIDR, err = netip.ParsePrefix(c.ServiceCIDR[i]); err != nil || r.ServiceCIDR != r.ServiceCIDR.Masked() {
			return s, fmt.Errorf("--service-cidr %q is not a network such as 10.43.0.0/16 or fd43::/112", c.ServiceCIDR[i])
		}
		if len(c.ClusterDNS) == 0 {
			r.DNS = tenth(r.ServiceCIDR)
		} else if r.DNS, err = netip.ParseAddr(c.ClusterDNS[i]); err != nil {
			return s, fmt.Errorf("--cluster-dns %q is not an IP address", c.ClusterDNS[i])
		}
	}
	s.PodCIDR, s.ServiceCIDR, s.DNS = ranges[0].PodCIDR, ranges[0].ServiceCIDR, ranges[0].DNS
	if families == 2 {
		s.Second = ranges[1]
	}
	return s, s.Validate()
}

// clusterSettings are those of the cluster that this machine is of, or would make. One that
// is about to join does not know better yet.
func (c *config) clusterSettings() (identity.Settings, error) {
	there, err := identity.Exists(c.DataDir)
	if err != nil || !there {
		made, settingsErr := c.settings()
		return made, errors.Join(err, settingsErr)
	}
	id, err := identity.Load(c.DataDir)
	if err != nil {
		return identity.Settings{}, err
	}
	return id.Settings(), nil
}

// tenth is where Kubernetes' clusters have their DNS.
func tenth(services netip.Prefix) netip.Addr {
	a := services.Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}

// address is where the other peers reach this one: the one given, the one from which it
// reaches the peer to join, that of the default route, or the only one; of the cluster's
// first IP family if this machine has one, else of the other. One that is of a cluster asks
// where the peer is that it joined only if it cannot tell otherwise: names may not be
// resolved yet after a cold boot.
func (c *config) address(ctx context.Context, made identity.Settings) (netip.Addr, error) {
	if c.AdvertiseAddress != "" {
		a, err := netip.ParseAddr(c.AdvertiseAddress)
		if err != nil || a.Zone() != "" || !(a.IsGlobalUnicast() || a.IsLoopback()) {
			return netip.Addr{}, fmt.Errorf("--advertise-address %q is not an IP address at which other machines find this one", c.AdvertiseAddress)
		}
		return a.Unmap(), nil
	}
	// Documentation's networks: nobody is there, so the default route leads to them.
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("[2001:db8::1]:9")
	families := []netip.AddrPort{v4, v6}
	if made.PodCIDR.Addr().Is6() {
		families = []netip.AddrPort{v6, v4}
	}
	there, err := identity.Exists(c.DataDir)
	if err != nil {
		return netip.Addr{}, err
	}
	own := made.Networks()
	if !there && c.Join != "" {
		own = nil // those of the cluster to join are not known; nothing is in them here yet
		if a, err := cluster.AddressTowards(c.joinAddresses(ctx), own); err != nil || a.IsValid() {
			return a, err
		}
	}
	all, err := cluster.Addresses(own)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, outside := range families {
		a, err := cluster.AddressTowards([]netip.AddrPort{outside}, own)
		if err != nil || a.IsValid() {
			return a, err
		}
		var found []netip.Addr
		for _, a := range all {
			if a.Is4() == outside.Addr().Is4() {
				found = append(found, a)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			if there {
				if a, err := cluster.AddressTowards(c.joinAddresses(ctx), own); err != nil || a.IsValid() {
					return a, err
				}
			}
			return netip.Addr{}, fmt.Errorf("this machine has no default route and %d addresses %v: choose one with --advertise-address", len(found), found)
		}
	}
	return netip.Addr{}, cluster.ErrNoAddress
}

// joinAddresses are those of the peer to join; none if there is none, or it is not known,
// which the join will say.
func (c *config) joinAddresses(ctx context.Context) (all []netip.AddrPort) {
	at, err := cluster.ParseHost(c.Join)
	if c.Join == "" || err != nil {
		return nil
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // a resolver's own timeout for one server
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil
	}
	for _, a := range found {
		all = append(all, netip.AddrPortFrom(a.Unmap(), 9))
	}
	return all
}
