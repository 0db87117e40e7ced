package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// annotationACME is "true" on an Ingress whose certificates are to be had by ACME, and on the
	// Secrets that were made so: no other Secret is ever written.
	annotationACME = "ingress.rookery.io/acme"

	acmeNamespace  = metav1.NamespaceSystem
	acmeAccount    = "rookery-acme-account"    // Secret with the account's key
	acmeChallenges = "rookery-acme-challenges" // ConfigMap, token to response
	challengePath  = "/.well-known/acme-challenge/"

	// acmeEvery is how often certificates are looked at beside when Ingresses change.
	acmeEvery = time.Hour
	// obtainTimeout is for one certificate.
	obtainTimeout = 3 * time.Minute
	// acmeBackoff bounds the pause after a failure: issuers allow few of them (Let's Encrypt: 5 an hour and host).
	acmeBackoffMin, acmeBackoffMax = 15 * time.Minute, 6 * time.Hour
)

// ACME says who issues certificates (RFC 8555).
type ACME struct {
	// Directory is the issuer's URL; empty means none.
	Directory string
	// Email is told of problems by some issuers; empty is none.
	Email string
	// Client speaks to the issuer; nil means http.DefaultClient.
	Client *http.Client
}

// Certificates obtains and renews, as the leader, certificates by ACME with the challenge http-01
// for Ingresses that ask for it, and keeps them in the Secrets that they name. Every peer answers
// the challenge. It blocks until ctx ends; cfg.Informers are a term's, which the caller closes.
func Certificates(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return err
	}
	o := &orders{cfg: cfg, kinds: newKinds(cfg.Informers), said: map[string]bool{}, retry: map[certRef]retry{}}
	wake := make(chan struct{}, 1)
	kick := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	informer := cfg.Informers.Networking().V1().Ingresses().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: kick, UpdateFunc: func(_, obj any) { kick(obj) }}); err != nil {
		return fmt.Errorf("watch ingresses: %w", err)
	}
	cfg.Informers.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced, cfg.Informers.Networking().V1().IngressClasses().Informer().HasSynced) {
		return nil
	}
	for {
		next := o.sync(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(next):
		}
	}
}

// orders are the certificates to be had.
type orders struct {
	cfg    Config
	kinds  kinds
	said   map[string]bool // Ingress and error of Events
	client *acme.Client    // nil until one is needed
	retry  map[certRef]retry
}

// retry is when a certificate that could not be had is tried again.
type retry struct {
	at   time.Time
	wait time.Duration
}

// sync obtains what is due, one after the other, and returns when to look again.
func (o *orders) sync(ctx context.Context) time.Duration {
	all, err := o.kinds.ours()
	if err != nil {
		o.cfg.Logger.Warn("certificates are not looked at", "error", err)
		return acmeBackoffMin
	}
	next := acmeEvery
	for _, ing := range all {
		if ing.Annotations[annotationACME] != "true" {
			continue
		}
		for _, t := range ing.Spec.TLS {
			ref := certRef{ing.Namespace, t.SecretName}
			r := o.retry[ref]
			if wait := time.Until(r.at); wait > 0 {
				next = min(next, wait)
				continue
			}
			err := o.ensure(ctx, ing, t)
			if err == nil || ctx.Err() != nil {
				delete(o.retry, ref)
				continue
			}
			r.wait = min(max(2*r.wait, acmeBackoffMin), acmeBackoffMax)
			r.at = time.Now().Add(r.wait)
			o.retry[ref] = r
			next = min(next, r.wait)
			o.cfg.Logger.Warn("no certificate by ACME", "ingress", ing.Namespace+"/"+ing.Name, "secret", t.SecretName, "error", err, "again", r.wait)
			o.say(ctx, problem{ing, "no certificate by ACME: " + err.Error()})
		}
	}
	return next
}

// say makes an Event of a failure, of each cause once.
func (o *orders) say(ctx context.Context, p problem) {
	key := string(p.ingress.UID) + " " + p.message
	if o.said[key] {
		return
	}
	if err := tell(ctx, o.cfg.Client, p); err != nil {
		o.cfg.Logger.Warn("event was not written", "error", err)
		return
	}
	o.said[key] = true
}

// ensure obtains the certificate of one entry of spec.tls unless there is a good one.
func (o *orders) ensure(ctx context.Context, ing *networkingv1.Ingress, t networkingv1.IngressTLS) error {
	switch {
	case t.SecretName == "" || len(t.Hosts) == 0:
		return errors.New("spec.tls needs hosts and a secretName")
	case slices.ContainsFunc(t.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") }):
		return errors.New("a wildcard host needs the challenge dns-01, which is not here")
	}
	secrets := o.cfg.Client.CoreV1().Secrets(ing.Namespace)
	have, err := secrets.Get(ctx, t.SecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		have = nil
	case err != nil:
		return fmt.Errorf("read the Secret: %w", err)
	case have.Annotations[annotationACME] != "true":
		return nil // somebody else's
	case good(have, t.Hosts):
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, obtainTimeout)
	defer cancel()
	if o.client == nil {
		if o.client, err = o.account(ctx); err != nil {
			return err
		}
	}
	data, err := o.obtain(ctx, t.Hosts)
	if err != nil {
		return err
	}
	next := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: t.SecretName, Annotations: map[string]string{annotationACME: "true"}}, Type: corev1.SecretTypeTLS, Data: data}
	if have == nil {
		_, err = secrets.Create(ctx, next, metav1.CreateOptions{})
	} else {
		next = have.DeepCopy()
		next.Data = data
		_, err = secrets.Update(ctx, next, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write the Secret: %w", err)
	}
	o.cfg.Logger.Info("certificate obtained by ACME", "secret", ing.Namespace+"/"+t.SecretName, "hosts", t.Hosts)
	return nil
}

// good says that a Secret has a certificate for the hosts with more than a third of its life left.
func good(s *corev1.Secret, hosts []string) bool {
	cert, err := parseSecret(s)
	if err != nil || cert.Leaf == nil {
		return false
	}
	for _, h := range hosts {
		if cert.Leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return lasts(cert.Leaf)
}

// account is a client with the cluster's account, made if there is none.
func (o *orders) account(ctx context.Context) (*acme.Client, error) {
	secrets := o.cfg.Client.CoreV1().Secrets(acmeNamespace)
	have, err := secrets.Get(ctx, acmeAccount, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, keyPEM, err := newKey()
		if err != nil {
			return nil, err
		}
		have, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: acmeAccount}, Data: map[string][]byte{corev1.TLSPrivateKeyKey: keyPEM}}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("keep the account's key: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("read the account's key: %w", err)
	}
	block, _ := pem.Decode(have.Data[corev1.TLSPrivateKeyKey])
	if block == nil {
		return nil, fmt.Errorf("the Secret %s/%s has no key; delete it to get another account", acmeNamespace, acmeAccount)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the account's key in %s/%s: %w", acmeNamespace, acmeAccount, err)
	}
	client := &acme.Client{Key: key, DirectoryURL: o.cfg.ACME.Directory, HTTPClient: o.cfg.ACME.Client, UserAgent: "rookery"}
	account := &acme.Account{}
	if o.cfg.ACME.Email != "" {
		account.Contact = []string{"mailto:" + o.cfg.ACME.Email}
	}
	if _, err := client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("register with %s: %w", o.cfg.ACME.Directory, err)
	}
	return client, nil
}

// obtain orders a certificate for hosts and returns what the Secret is to hold.
func (o *orders) obtain(ctx context.Context, hosts []string) (map[string][]byte, error) {
	order, err := o.client.AuthorizeOrder(ctx, acme.DomainIDs(hosts...))
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	for _, url := range order.AuthzURLs {
		if err := o.authorize(ctx, url); err != nil {
			return nil, err
		}
	}
	if order, err = o.client.WaitOrder(ctx, order.URI); err != nil {
		return nil, fmt.Errorf("wait for the order: %w", err)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: hosts}, key)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	chain, _, err := o.client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	if err != nil {
		return nil, fmt.Errorf("finalize: %w", err)
	}
	var certPEM []byte
	for _, der := range chain {
		certPEM = append(certPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM}, nil
}

// authorize proves that a host is ours.
func (o *orders) authorize(ctx context.Context, url string) error {
	authz, err := o.client.GetAuthorization(ctx, url)
	if err != nil || authz.Status == acme.StatusValid {
		return err
	}
	i := slices.IndexFunc(authz.Challenges, func(c *acme.Challenge) bool { return c.Type == "http-01" })
	if i < 0 {
		return fmt.Errorf("the issuer offers no challenge http-01 for %s", authz.Identifier.Value)
	}
	token := authz.Challenges[i].Token
	response, err := o.client.HTTP01ChallengeResponse(token)
	if err != nil {
		return err
	}
	if err := setChallenge(ctx, o.cfg.Client, map[string]any{token: response}); err != nil {
		return err
	}
	defer func() {
		if err := setChallenge(context.WithoutCancel(ctx), o.cfg.Client, map[string]any{token: nil}); err != nil {
			o.cfg.Logger.Warn("a challenge that is over was not removed", "error", err)
		}
	}()
	if _, err := o.client.Accept(ctx, authz.Challenges[i]); err != nil {
		return fmt.Errorf("accept the challenge for %s: %w", authz.Identifier.Value, err)
	}
	if _, err := o.client.WaitAuthorization(ctx, authz.URI); err != nil {
		return fmt.Errorf("%s was not found to be ours: %w", authz.Identifier.Value, err)
	}
	return nil
}

// setChallenge adds or, with nil, removes responses, where every peer looks for them.
func setChallenge(ctx context.Context, client kubernetes.Interface, responses map[string]any) error {
	configs := client.CoreV1().ConfigMaps(acmeNamespace)
	patch, err := json.Marshal(map[string]any{"data": responses})
	if err != nil {
		return err
	}
	_, err = configs.Patch(ctx, acmeChallenges, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		data := map[string]string{}
		for token, r := range responses {
			if s, ok := r.(string); ok {
				data[token] = s
			}
		}
		_, err = configs.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: acmeChallenges}, Data: data}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("publish the challenge: %w", err)
	}
	return nil
}

// challenge answers the issuer's question for a token; false: there is no such token, and the
// request is somebody else's.
func (h *handler) challenge(w http.ResponseWriter, r *http.Request) bool {
	token, ok := strings.CutPrefix(r.URL.Path, challengePath)
	if !ok || h.cfg.ACME.Directory == "" || r.TLS != nil || !isToken(token) {
		return false
	}
	response, err := h.challenges.response(r.Context(), token)
	if err != nil || response == "" {
		return false
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	// A client that is gone before the answer is no one's problem.
	_, _ = w.Write([]byte(response))
	return true
}

// isToken tells what an issuer could have made: base64url without padding, of at least 128 bits (RFC 8555 8.3).
func isToken(s string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return len(s) >= 22 && len(s) <= 512 && strings.Trim(s, letters) == ""
}

// newKey makes a key, and gives it in PEM as well.
func newKey() (key *ecdsa.PrivateKey, keyPEM []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
