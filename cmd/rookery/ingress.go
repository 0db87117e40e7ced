package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/spf13/pflag"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/rundigitalplatform/rookery/controller"
	"github.com/rundigitalplatform/rookery/ingress"
)

// ingressCertLife is that of certificates of the cluster's CA for hosts: browsers take no
// more than 398 days, and they are made anew as long as the daemon runs.
const ingressCertLife = 90 * 24 * time.Hour

// ingressConfig is what is set about Ingresses.
type ingressConfig struct {
	HTTP, HTTPS    uint16
	Timeout        time.Duration
	MaxBody        string
	TrustedProxies []string
	AccessLog      string
	ACME           string
	ACMEEmail      string
	ACMECAFile     string
}

func (c *ingressConfig) flags(f *pflag.FlagSet) {
	f.Uint16Var(&c.HTTP, "ingress-http", 80, "port of Ingresses, opened when there is one; 0: none")
	f.Uint16Var(&c.HTTPS, "ingress-https", 443, "port of Ingresses with TLS; 0: none")
	f.DurationVar(&c.Timeout, "ingress-timeout", time.Minute, "how long a pod behind an Ingress may take until its response begins")
	f.StringVar(&c.MaxBody, "ingress-max-body", "0", "how large the body of a request to an Ingress may be, such as 100Mi; 0 is no bound")
	f.StringSliceVar(&c.TrustedProxies, "ingress-trusted-proxies", nil, "networks of proxies before the peers, whose X-Forwarded-For is believed")
	f.StringVar(&c.ACME, "ingress-acme", "", "directory URL of an ACME issuer for Ingresses that ask for it, e.g. https://acme-v02.api.letsencrypt.org/directory; the same on every peer (default: none)")
	f.StringVar(&c.ACMEEmail, "ingress-acme-email", "", "address that the issuer may write to")
	f.StringVar(&c.ACMECAFile, "ingress-acme-ca-file", "", "CA of an issuer that this machine does not trust, PEM")
	f.StringVar(&c.AccessLog, "ingress-access-log", "", "file to write each request to an Ingress down in, rotated at 10 MB (default: none)")
}

// load is the configuration of the proxy as far as it is set, without what only a running peer has.
func (c *ingressConfig) load() (ingress.Config, error) {
	out := ingress.Config{HTTP: c.HTTP, HTTPS: c.HTTPS, Timeout: c.Timeout}
	if c.Timeout <= 0 {
		return out, fmt.Errorf("--ingress-timeout %s is not positive", c.Timeout)
	}
	if c.HTTP == c.HTTPS && c.HTTP != 0 {
		return out, fmt.Errorf("--ingress-http and --ingress-https are both %d", c.HTTP)
	}
	if u, err := url.Parse(c.ACME); c.ACME != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return out, fmt.Errorf("--ingress-acme %q is not an https URL such as https://acme-v02.api.letsencrypt.org/directory", c.ACME)
	}
	if c.ACME != "" && c.HTTP != 80 {
		return out, fmt.Errorf("--ingress-acme needs --ingress-http 80: issuers ask there")
	}
	out.ACME = ingress.ACME{Directory: c.ACME, Email: c.ACMEEmail}
	if c.ACMECAFile != "" {
		text, err := os.ReadFile(c.ACMECAFile)
		if err != nil {
			return out, fmt.Errorf("ingress-acme-ca-file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return out, fmt.Errorf("ingress-acme-ca-file %s holds no certificate in PEM", c.ACMECAFile)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
		out.ACME.Client = &http.Client{Transport: transport}
	}
	size, err := resource.ParseQuantity(c.MaxBody)
	if err != nil || size.Sign() < 0 {
		return out, fmt.Errorf("--ingress-max-body %q is not a size such as 100Mi", c.MaxBody)
	}
	out.MaxBody = size.Value()
	out.TrustedProxies, err = networks("ingress-trusted-proxies", c.TrustedProxies)
	return out, err
}

// access opens the access log; nil: none.
func (c *ingressConfig) access() (*slog.Logger, error) {
	if c.AccessLog == "" {
		return nil, nil
	}
	out, err := rotated("ingress-access-log", c.AccessLog, 10, 5)
	if err != nil {
		return nil, err
	}
	return slog.New(slog.NewJSONHandler(out, nil)), nil
}

func (p *peer) ingressConfig() (ingress.Config, error) {
	cfg, err := p.cfg.Ingress.load()
	if err != nil {
		return cfg, err
	}
	cfg.Client, err = kubernetes.NewForConfig(p.api.ClientConfig("system:rookery-ingress", "system:masters"))
	cfg.Node, cfg.Informers, cfg.StartInformers = p.id.Name(), p.api.Informers(), p.api.StartInformers
	cfg.Alive, cfg.Logger = p.live.alive, p.log.With("room", "ingress")
	cfg.Hidden = func(node string) bool {
		m, _ := p.members.Member(node)
		return m.Hidden
	}
	return cfg, err
}

// ingress makes the proxy. slices are the EndpointSlices of a Service.
func (p *peer) ingress(slices func(namespace, service string) []*discoveryv1.EndpointSlice) (*ingress.Proxy, error) {
	cfg, err := p.ingressConfig()
	if err != nil {
		return nil, err
	}
	if cfg.Access, err = p.cfg.Ingress.access(); err != nil {
		return nil, err
	}
	cfg.Slices = slices
	cfg.Changed = p.live.subscribe() // for as long as the daemon runs
	cfg.Issue = func(names []string, addrs []netip.Addr) (*tls.Certificate, error) {
		return p.id.IssueServer(names, addrs, ingressCertLife)
	}
	cfg.Metrics = ingress.NewMetrics()
	legacyregistry.Registerer().MustRegister(cfg.Metrics)
	return ingress.New(cfg)
}

// runCertificates is a leader's work, if there is an issuer.
func (p *peer) runCertificates(ctx context.Context) error {
	if p.cfg.Ingress.ACME == "" {
		<-ctx.Done()
		return nil
	}
	cfg, err := p.ingressConfig()
	if err != nil {
		return err
	}
	term := controller.NewTerm(p.api.Informers(), p.api.StartInformers)
	cfg.Informers = term
	return errors.Join(ingress.Certificates(ctx, cfg), term.Close())
}

// runIngressStatus is a leader's work.
func (p *peer) runIngressStatus(ctx context.Context) error {
	cfg, err := p.ingressConfig()
	if err != nil {
		return err
	}
	term := controller.NewTerm(p.api.Informers(), p.api.StartInformers)
	changed := p.live.subscribe()
	defer p.live.unsubscribe(changed)
	cfg.Informers, cfg.Changed = term, changed
	return errors.Join(ingress.Status(ctx, cfg), term.Close())
}
