package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/dnsserver"
)

// namesConfig is what is set about DNS.
type namesConfig struct {
	Upstreams  []string
	Forward    []string // DOMAIN=SERVER, as many as there are
	LANZone    string
	LANListen  []string // ADDR or ADDR:PORT
	LANClients []string // networks
	LANForward bool
	LANCluster bool
	LANRate    int
}

func (c *namesConfig) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Upstreams, "upstream-dns", nil, "DNS servers for names outside the cluster (default: those of /etc/resolv.conf)")
	f.StringSliceVar(&c.Forward, "dns-forward", nil, "DNS servers for a domain of their own, DOMAIN=SERVER")
	f.StringVar(&c.LANZone, "lan-zone", "", "DNS domain in which the LAN finds Services with an address or node ports, and the hosts of Ingresses, e.g. home.arpa (default: none)")
	f.StringSliceVar(&c.LANListen, "lan-dns", nil, "addresses at which the LAN's questions are answered (default: --advertise-address, if there is anything to answer)")
	f.StringSliceVar(&c.LANClients, "lan-clients", nil, "networks whose machines may ask (default: private and link-local addresses)")
	f.BoolVar(&c.LANForward, "lan-forward", false, "resolve other names for the LAN too")
	f.BoolVar(&c.LANCluster, "lan-cluster-names", false, "answer the cluster's own names to the LAN too")
	f.IntVar(&c.LANRate, "lan-rate", 100, "DNS answers by UDP a second to each /24 (IPv6: /56) of the LAN; 0 is no bound")
}

// serves says that the LAN is answered anything.
func (c *namesConfig) serves() bool {
	return c.LANZone != "" || c.LANForward || c.LANCluster || len(c.LANListen) > 0
}

func (c *namesConfig) forward() (map[string][]string, error) {
	out := map[string][]string{}
	for _, s := range c.Forward {
		domain, server, ok := strings.Cut(s, "=")
		if !ok || domain == "" || server == "" {
			return nil, fmt.Errorf("--dns-forward %q is not DOMAIN=SERVER, such as corp.example=10.0.0.53", s)
		}
		out[domain] = append(out[domain], server)
	}
	return out, nil
}

func (c *namesConfig) listen() (addrs []netip.AddrPort, err error) {
	for _, s := range c.LANListen {
		a, err := netip.ParseAddrPort(s)
		if ip, ipErr := netip.ParseAddr(s); ipErr == nil {
			a, err = netip.AddrPortFrom(ip, 53), nil
		}
		if err != nil {
			return nil, fmt.Errorf("--lan-dns %q is not an address of this machine, such as 192.168.1.10 or 192.168.1.10:53", s)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// server is the configuration of the DNS server as far as it is set, without what only
// a running peer has.
func (c *namesConfig) server(domain string) (dnsserver.Config, error) {
	forward, err1 := c.forward()
	addrs, err2 := c.listen()
	clients, err3 := networks("lan-clients", c.LANClients)
	if err := errors.Join(err1, err2, err3); err != nil {
		return dnsserver.Config{}, err
	}
	if c.LANRate < 0 {
		return dnsserver.Config{}, fmt.Errorf("--lan-rate %d is negative", c.LANRate)
	}
	cfg := dnsserver.Config{Domain: domain, Upstreams: c.Upstreams, Forward: forward, LAN: dnsserver.LAN{
		Zone: c.LANZone, Networks: clients, Forward: c.LANForward, Cluster: c.LANCluster, Rate: c.LANRate,
	}}
	if c.LANRate == 0 {
		cfg.LAN.Rate = -1
	}
	if len(addrs) > 0 {
		cfg.LAN.Listen = func() []netip.AddrPort { return addrs }
	}
	return cfg, cfg.ValidateNames()
}

func (p *peer) dns(source dnsserver.Source) (*dnsserver.Server, error) {
	settings := p.id.Settings()
	cfg, err := p.cfg.Names.server(settings.Domain)
	if err != nil {
		return nil, err
	}
	for _, r := range settings.Ranges() {
		cfg.Addrs = append(cfg.Addrs, netip.AddrPortFrom(r.DNS, 53))
		cfg.Networks = append(cfg.Networks, r.PodCIDR, r.ServiceCIDR)
	}
	cfg.Source, cfg.Alive, cfg.Peers, cfg.LAN.Peers = source, p.live.alive, p.addresses, p.balancers
	cfg.Logger = p.log.With("room", "dnsserver")
	if cfg.LAN.Listen == nil && p.cfg.Names.serves() {
		cfg.LAN.Listen = func() (all []netip.AddrPort) {
			for _, a := range machineAddresses(p.self(), settings) {
				all = append(all, netip.AddrPortFrom(a, 53))
			}
			return all
		}
	}
	cfg.Metrics = dnsserver.NewMetrics()
	legacyregistry.Registerer().MustRegister(cfg.Metrics)
	return dnsserver.New(cfg)
}

// addresses is where a peer of that name is, of both IP families where the cluster has both.
func (p *peer) addresses(name string) []netip.Addr {
	m, ok := p.members.Member(name)
	if !ok || !m.Address.IsValid() {
		return nil
	}
	r, err := p.registry.Peer(name) // for its other address, which gossip does not know
	if err != nil {
		r = cluster.Peer{}
	}
	r.Address = m.Address
	return machineAddresses(r, p.id.Settings())
}

// balancers are the peers that forward what comes from outside.
func (p *peer) balancers() (all []dnsserver.Peer) {
	for _, m := range p.members.Snapshot() {
		if addrs := p.addresses(m.Name); len(addrs) > 0 && !m.Witness {
			all = append(all, dnsserver.Peer{Name: m.Name, Addrs: addrs, Alive: p.live.alive(m.Name), Hidden: m.Hidden})
		}
	}
	slices.SortFunc(all, func(a, b dnsserver.Peer) int { return strings.Compare(a.Name, b.Name) })
	return all
}
