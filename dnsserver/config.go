package dnsserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Config says what to serve and where. It is copied by [New].
type Config struct {
	// Addrs are the addresses to listen on, udp and tcp each, e.g. 10.43.0.10:53.
	// They need not be on an interface yet (IP_FREEBIND).
	Addrs []netip.AddrPort
	// Domain is the cluster's; empty means cluster.local.
	Domain string
	// Networks are the pod and service networks. An address in them that no
	// Service or endpoint has does not exist; any other address is asked upstream.
	// nil means 10.42.0.0/16 and 10.43.0.0/16.
	Networks []netip.Prefix
	// Source is what the cluster domain is answered from. Required.
	Source Source
	// Alive says whether gossip believes that a node lives; endpoints on others
	// are left out. nil means all live. It is called for each endpoint of each
	// answer, concurrently, and must not block.
	Alive func(node string) bool
	// Peers gives the addresses of the peer of that name, none if there is no such peer.
	// nil means that NAME.peer.DOMAIN never exists.
	Peers func(name string) []netip.Addr
	// Upstreams answer what is outside the cluster, as ADDR or ADDR:PORT, in order of
	// preference. nil means the nameservers of ResolvConf, followed as that file
	// changes. Addrs are skipped, so that the server never asks itself.
	Upstreams []string
	// ResolvConf is used when Upstreams is nil; empty means /etc/resolv.conf.
	ResolvConf string
	// Forward gives domains that other servers answer: the longest domain that a name is
	// in or below decides. The servers are written as in Upstreams.
	Forward map[string][]string
	// LAN is what machines that are neither pods nor this one may ask. The zero value
	// refuses them everything.
	LAN LAN
	// Metrics count what is answered; nil means that nobody reads them.
	Metrics *Metrics
	// Logger is required.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Domain == "" {
		c.Domain = "cluster.local"
	}
	c.Domain = dns.CanonicalName(c.Domain)
	if c.Networks == nil {
		c.Networks = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Alive == nil {
		c.Alive = func(string) bool { return true }
	}
	if c.Peers == nil {
		c.Peers = func(string) []netip.Addr { return nil }
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	c.LAN = c.LAN.withDefaults()
	return c
}

// Validate says what is wrong with the configuration, in the user's terms.
func (c Config) Validate() error {
	if len(c.Addrs) == 0 {
		return errors.New("dns: no address to listen on")
	}
	for _, a := range c.Addrs {
		if !a.IsValid() {
			return fmt.Errorf("dns: %q is not an address with a port, such as 10.43.0.10:53", a)
		}
	}
	if c.Source == nil || c.Logger == nil {
		return errors.New("dns: Source and Logger are required")
	}
	if c.LAN.Zone != "" && c.LAN.Peers == nil {
		return errors.New("dns: LAN.Peers is required with LAN.Zone")
	}
	return c.ValidateNames()
}

// ValidateNames checks the part that a user writes: domains and other servers.
func (c Config) ValidateNames() error {
	c = c.withDefaults()
	if _, ok := dns.IsDomainName(c.Domain); !ok || strings.HasPrefix(c.Domain, ".") {
		return fmt.Errorf("dns: %q is not a domain name, such as cluster.local", c.Domain)
	}
	for _, u := range c.Upstreams {
		if _, err := parseUpstream(u); err != nil {
			return err
		}
	}
	for domain, servers := range c.Forward {
		if err := c.validForward(domain, servers); err != nil {
			return err
		}
	}
	return c.LAN.validate(c.Domain)
}

func (c Config) validForward(domain string, servers []string) error {
	if err := validDomain(domain); err != nil {
		return err
	}
	for _, own := range []string{c.Domain, c.LAN.Zone} {
		if own != "" && dns.IsSubDomain(dns.CanonicalName(own), dns.CanonicalName(domain)) {
			return fmt.Errorf("dns: %s is answered from the cluster, it cannot be forwarded", domain)
		}
	}
	if len(servers) == 0 {
		return fmt.Errorf("dns: no server to forward %s to", domain)
	}
	for _, u := range servers {
		if _, err := parseUpstream(u); err != nil {
			return fmt.Errorf("%w (of %s)", err, domain)
		}
	}
	return nil
}

// validDomain refuses what is no domain name of one label or more.
func validDomain(name string) error {
	if _, ok := dns.IsDomainName(name); !ok || strings.Trim(name, ".") == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, " /:*@") {
		return fmt.Errorf("dns: %q is not a domain name, such as home.arpa", name)
	}
	return nil
}

// parseUpstream reads ADDR or ADDR:PORT; without a port it is 53.
func parseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("dns: upstream %q is not an address, write it as 192.0.2.1 or 192.0.2.1:53", s)
	}
	return ap, nil
}
