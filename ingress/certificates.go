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

	corev1 "k8s.io/api/core/v1"
)

// certificates are those that clients are shown.
type certificates struct {
	issue func(names []string, addrs []netip.Addr) (*tls.Certificate, error)
	table func() *table

	mu      sync.Mutex
	secrets map[certRef]secretCert
	ours    map[string]*tls.Certificate // of the cluster's CA, by name or address
}

type secretCert struct {
	version string // of the Secret
	cert    *tls.Certificate
	err     error
}

// update reads the Secrets that t names, and returns what is wrong with them. secret
// returns nil for one that does not exist.
func (c *certificates) update(t *table, secret func(namespace, name string) *corev1.Secret) (errs []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := map[certRef]secretCert{}
	for _, ref := range t.certs {
		s := secret(ref.namespace, ref.name)
		switch have, ok := c.secrets[ref]; {
		case s == nil:
			errs = append(errs, fmt.Errorf("there is no Secret %s/%s", ref.namespace, ref.name))
		case ok && have.version == s.ResourceVersion:
			next[ref] = have
		default:
			cert, err := parseSecret(s)
			next[ref] = secretCert{s.ResourceVersion, cert, err}
		}
		if err := next[ref].err; err != nil {
			errs = append(errs, err)
		}
	}
	c.secrets = next
	return errs
}

func parseSecret(s *corev1.Secret) (*tls.Certificate, error) {
	if len(s.Data[corev1.TLSCertKey]) == 0 || len(s.Data[corev1.TLSPrivateKeyKey]) == 0 {
		return nil, fmt.Errorf("the Secret %s/%s has no %s and %s", s.Namespace, s.Name, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	cert, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("the Secret %s/%s holds no certificate with its key: %w", s.Namespace, s.Name, err)
	}
	return &cert, nil
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
