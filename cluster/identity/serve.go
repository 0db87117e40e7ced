package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// maxAddresses bounds the addresses of a certificate. A machine has few; beyond
// this the oldest ones are dropped.
const maxAddresses = 32

// setCert must be called with mu held, or before the identity is shared.
func (id *Identity) setCert(c *x509.Certificate) {
	id.cert = &tls.Certificate{Certificate: [][]byte{c.Raw, id.ca.cert.Raw}, PrivateKey: id.peerKey, Leaf: c}
	id.addrs = id.addrs[:0]
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			id.addrs = append(id.addrs, a.Unmap())
		}
	}
}

// Certificate is the peer's current certificate with its chain; it must not be changed.
func (id *Identity) Certificate() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// Cover sees to it that the certificate holds addr, issuing it again in memory
// with the same key if need be, and returns it. Nothing is written: after a
// restart the address is learnt again.
func (id *Identity) Cover(addr netip.Addr) (*tls.Certificate, error) {
	addr = addr.Unmap().WithZone("")
	id.mu.Lock()
	defer id.mu.Unlock()
	if !addr.IsValid() || addr.IsUnspecified() || slices.Contains(id.addrs, addr) {
		return id.cert, nil
	}
	addrs := append(slices.Clone(id.addrs), addr)
	if over := len(addrs) - maxAddresses; over > 0 {
		addrs = addrs[over:] // loopback and the Service address are put back by signPeer
	}
	der, err := id.ca.signPeer(id.name, id.peerKey.Public(), id.settings, addrs)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	id.setCert(c)
	return id.cert, nil
}

// GetCertificate is for a server's [tls.Config]: the certificate covers the
// address that the client dialled, whatever address the machine has by now.
func (id *Identity) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.Conn != nil {
		if a, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
			return id.Cover(a.AddrPort().Addr())
		}
	}
	return id.Certificate(), nil
}

// GetClientCertificate is for a client's [tls.Config].
func (id *Identity) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return id.Certificate(), nil
}
