package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// certificates are those that clients are shown.
type certificates struct {
	issue func(names []string, addrs []netip.Addr) (*tls.Certificate, error)
	table func() *table

	mu      sync.Mutex
	secrets map[certRef]secretCert
	ours    map[string]*tls.Certificate // of the cluster's CA, by name or address
}

// update takes what the Secrets that the table names hold.
func (c *certificates) update(secrets map[certRef]secretCert) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets = secrets
}

// lasts tells whether a certificate has more than a third of its life left. One that has not is made anew.
func lasts(leaf *x509.Certificate) bool {
	return time.Until(leaf.NotAfter) > leaf.NotAfter.Sub(leaf.NotBefore)/3
}

// get is for [tls.Config]: the certificate of the Secret for the name, else one of the
// cluster's CA, for the name if some rule has it.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, t := hostOf(hello.ServerName), c.table()
	_, parent, _ := strings.Cut(name, ".")
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range []string{name, "*." + parent, ""} {
		if ref, ok := t.certs[host]; ok {
			if s := c.secrets[ref]; s.cert != nil {
				return s.cert, nil
			}
		}
	}
	if pattern, ok := t.known(name); ok && name != "" {
		return c.own(pattern, []string{pattern}, nil)
	}
	// Without a name, or with one that nobody asked for: so that strangers do not make us sign.
	var addrs []netip.Addr
	if tcp, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
		if ip, ok := netip.AddrFromSlice(tcp.IP); ok {
			addrs = []netip.Addr{ip.Unmap()}
		}
	}
	return c.own(fmt.Sprint(addrs), nil, addrs)
}

// own returns the certificate of the cluster's CA that is kept under key, made if need be.
func (c *certificates) own(key string, names []string, addrs []netip.Addr) (*tls.Certificate, error) {
	if cert := c.ours[key]; cert != nil && (cert.Leaf == nil || lasts(cert.Leaf)) {
		return cert, nil
	}
	cert, err := c.issue(names, addrs)
	if err != nil {
		return nil, err
	}
	if c.ours == nil {
		c.ours = map[string]*tls.Certificate{}
	}
	c.ours[key] = cert
	return cert, nil
}
