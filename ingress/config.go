package ingress

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
)

const (
	// ControllerName is the spec.controller of IngressClasses that this package serves.
	ControllerName = "rookery.io/ingress"
	// ClassName is the IngressClass that [Status] makes.
	ClassName = "rookery"
	// PortsAnnotation is on the Node of each peer that serves Ingresses: its ports, separated by commas.
	PortsAnnotation = "ingress.rookery.io/ports"

	defaultTimeout = time.Minute
)

// Config is what a [Proxy] and a [Status] are made from. It is copied.
type Config struct {
	// HTTP and HTTPS are the ports; 0 means that there is none. The proxy listens on all addresses.
	HTTP, HTTPS uint16
	// Node is this peer's.
	Node string
	// Client writes Events, the Node's annotation and Ingresses' status, and reads Secrets. Required.
	Client kubernetes.Interface
	// Informers are the process's; StartInformers starts what was asked of them later. Required.
	Informers      informers.SharedInformerFactory
	StartInformers func()
	// Slices are the EndpointSlices of a Service, from memory: it is called for each table.
	// Required for the Proxy.
	Slices func(namespace, service string) []*discoveryv1.EndpointSlice
	// Alive says whether a node's endpoints may be used, Changed gets a value when its answers
	// change. nil means that all live.
	Alive   func(node string) bool
	Changed <-chan struct{}
	// Hidden says that a node cannot be dialled from outside (NAT, a firewall). nil means that all can.
	Hidden func(node string) bool
	// Issue makes a certificate of the cluster's CA for names and addresses. Required for the Proxy.
	Issue func(names []string, addrs []netip.Addr) (*tls.Certificate, error)
	// TrustedProxies are the networks from which X-Forwarded-For is believed: to endpoints,
	// in the access log, and for affinity.
	TrustedProxies []netip.Prefix
	// Timeout is how long an endpoint may take until its response begins, and a client
	// between two parts of its request. 0 means a minute. Annotations may say otherwise.
	Timeout time.Duration
	// MaxBody bounds requests' bodies in bytes. 0 means no bound. Annotations may say otherwise.
	MaxBody int64
	// ACME issues certificates for Ingresses that ask for it. The zero value: nobody does.
	ACME ACME
	// Metrics count requests; nil means that nobody reads them.
	Metrics *Metrics
	// Access gets a record for each request. nil means none.
	Access *slog.Logger
	Logger *slog.Logger // required
}

func (c Config) withDefaults() Config {
	if c.Slices == nil {
		c.Slices = func(string, string) []*discoveryv1.EndpointSlice { return nil }
	}
	if c.Alive == nil {
		c.Alive = func(string) bool { return true }
	}
	if c.Hidden == nil {
		c.Hidden = func(string) bool { return false }
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	return c
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Client == nil || c.Informers == nil || c.StartInformers == nil || c.Logger == nil || c.Node == "" {
		return errors.New("ingress: Client, Informers, StartInformers, Logger and Node are required")
	}
	if c.HTTP == c.HTTPS && c.HTTP != 0 {
		return errors.New("ingress: HTTP and HTTPS cannot have the same port")
	}
	return nil
}
