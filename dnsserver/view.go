package dnsserver

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// view is what a client may ask.
type view struct {
	cluster bool // the cluster domain and its reverse zones
	forward bool // all other names
	lan     bool // the zone for the LAN
	limited bool // answers by udp are counted
}

// inside is the view of pods and of this machine.
func inside() view { return view{cluster: true, forward: true, lan: true} }

// clients tells who asks.
type clients struct {
	networks []netip.Prefix // the cluster's
	lan      LAN
	own      ownAddresses
}

// of is the view of a client.
func (c *clients) of(client netip.Addr) view {
	client = client.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(client) }
	switch {
	case client.IsLoopback(), slices.ContainsFunc(c.networks, in), c.own.contains(client):
		return inside()
	case slices.ContainsFunc(c.lan.Networks, in):
		return view{lan: true, cluster: c.lan.Cluster, forward: c.lan.Forward, limited: true}
	}
	return view{limited: true}
}

// ownEvery is how often this machine's addresses are looked at.
const ownEvery = 5 * time.Second

// ownAddresses are this machine's.
type ownAddresses struct {
	mu    sync.Mutex
	until time.Time
	all   map[netip.Addr]bool
}

func (o *ownAddresses) contains(ip netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); now.After(o.until) {
		o.until = now.Add(ownEvery)
		// On an error the addresses from before are as good as any.
		if found, err := net.InterfaceAddrs(); err == nil {
			o.all = make(map[netip.Addr]bool, len(found))
			for _, a := range found {
				if n, ok := a.(*net.IPNet); ok {
					if ip, ok := netip.AddrFromSlice(n.IP); ok {
						o.all[ip.Unmap()] = true
					}
				}
			}
		}
	}
	return o.all[ip]
}
