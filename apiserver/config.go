package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
	"github.com/rundigitalplatform/rookery/apiserver/allocation"
	"github.com/rundigitalplatform/rookery/apiserver/authentication"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// PortRange is a range of ports, both ends included.
type PortRange = allocation.PortRange

// Config says what a [Server] serves and over what. [New] copies it.
type Config struct {
	// Store holds every object, under /registry/. Required.
	Store raftstore.Store
	// Logger. Required.
	Logger *slog.Logger

	// ClientCAs verifies client certificates. A certificate's CN is the user's
	// name, its O the groups. The dates of peers' certificates (O system:nodes)
	// are not looked at, those of users are. nil: no client certificates.
	ClientCAs *x509.CertPool
	// Revoked tells whether a peer's certificate (O system:nodes) is refused
	// although it is the CA's, because the peer was removed. It must not block. nil: none is.
	Revoked func(*x509.Certificate) bool
	// TokenKey signs and verifies service account tokens; it is the same on every peer. Required.
	TokenKey *ecdsa.PrivateKey

	// OIDC is an issuer whose users the API takes too. nil: none. It is asked when the
	// first of its tokens comes, not before.
	OIDC *authentication.OIDC

	// FrontProxy makes what the API shows to extension servers. It is called once, and
	// where there are none only by the leader. nil: there can be no extension servers.
	FrontProxy func() (aggregation.FrontProxy, error)

	// ServiceCIDRs are where ClusterIPs come from: one network, or one of each IP family, of
	// which Services get the first if they do not say. Default 10.43.0.0/16. The first
	// address of the first one is the API's own Service, `kubernetes`.
	ServiceCIDRs []netip.Prefix
	// NodePorts is where node ports come from. Default 30000 to 32767.
	NodePorts PortRange
	// APIPort is the port the peers serve the API on, for the `kubernetes` Service. Default 6443.
	APIPort int

	// KubernetesVersion is what /version says, "v1.37.2". Default: the version
	// of the Kubernetes packages this was written for.
	KubernetesVersion string
	// GitCommit and BuildDate go to /version too; may be empty.
	GitCommit, BuildDate string

	// TolerationSeconds is how long a pod stays bound to a peer that is not
	// reachable, unless the pod says otherwise. Default 5.
	TolerationSeconds int64

	// Kubelet tells how to reach the agent on a node, for logs, exec, attach,
	// port-forward and the node proxy: a base URL (scheme and host) and a
	// transport, best an *http.Transport, whose dialler and TLS configuration
	// are used for upgraded connections. nil: these calls fail with 503.
	Kubelet func(ctx context.Context, node string) (*url.URL, http.RoundTripper, error)

	// Alive tells whether a node's agent is worth asking for what its pods use. It must
	// not block. nil: all are.
	Alive func(node string) bool
	// Audit writes down who asked for what. nil: nothing is.
	Audit *Audit
	// Components are what /healthz asks beside the API itself.
	Components []Component

	// MaxBodyBytes bounds a request's body. Default 3 MiB.
	MaxBodyBytes int64
	// MaxReads and MaxWrites bound the requests being served at once, watches
	// and streams left out; more get 429 with Retry-After. Calls from inside the
	// process and from system:masters are not counted. Default 400 and 200.
	MaxReads, MaxWrites int
	// RequestTimeout bounds a request that is not a watch or stream. Default 60 s.
	RequestTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if len(c.ServiceCIDRs) == 0 {
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	}
	c.ServiceCIDRs = slices.Clone(c.ServiceCIDRs)
	for i, cidr := range c.ServiceCIDRs {
		c.ServiceCIDRs[i] = cidr.Masked()
	}
	if c.NodePorts == (PortRange{}) {
		c.NodePorts = PortRange{First: 30000, Last: 32767}
	}
	setDefault(&c.APIPort, 6443)
	setDefault(&c.KubernetesVersion, "v1.37.2")
	setDefault(&c.TolerationSeconds, 5)
	setDefault(&c.MaxBodyBytes, 3<<20)
	setDefault(&c.MaxReads, 400)
	setDefault(&c.MaxWrites, 200)
	setDefault(&c.RequestTimeout, 60*time.Second)
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (c Config) validate() error {
	switch {
	case c.Store == nil:
		return errors.New("apiserver needs a Store")
	case c.Logger == nil:
		return errors.New("apiserver needs a Logger")
	case c.TokenKey == nil:
		return errors.New("apiserver needs a TokenKey to sign service account tokens")
	case len(c.ServiceCIDRs) > 2 || len(c.ServiceCIDRs) == 2 && c.ServiceCIDRs[0].Addr().Is4() == c.ServiceCIDRs[1].Addr().Is4():
		return fmt.Errorf("service networks %v: there is one, or one of each IP family", c.ServiceCIDRs)
	case c.NodePorts.First < 1 || c.NodePorts.Last > 65535 || c.NodePorts.Last < c.NodePorts.First:
		return fmt.Errorf("node ports %d-%d are not a range of ports: use for example 30000-32767", c.NodePorts.First, c.NodePorts.Last)
	}
	for _, cidr := range c.ServiceCIDRs {
		if cidr.Addr().BitLen()-cidr.Bits() < 3 {
			return fmt.Errorf("service network %s is too small: give it at least 8 addresses", cidr)
		}
	}
	if c.OIDC != nil {
		return c.OIDC.Validate()
	}
	return nil
}
