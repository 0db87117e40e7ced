package ingress

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// secrets are the certificates in the cluster's Secrets. The zero value follows none yet. It is
// for one goroutine.
type secrets struct {
	kept   cache.Indexer // nil: none is followed
	parsed map[certRef]secretCert
}

// certRef names a Secret.
type certRef struct{ namespace, name string }

// secretCert is what a Secret holds, or why that is no certificate.
type secretCert struct {
	version string // of the Secret; "": there is none
	cert    *tls.Certificate
	err     error
}

// follow keeps the certificates of the cluster's Secrets until ctx ends, and calls changed when
// one does. Of other Secrets nothing is kept. Once is enough.
func (s *secrets) follow(ctx context.Context, client kubernetes.Interface, changed func()) {
	if s.kept != nil {
		return
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	informer := factory.Core().V1().Secrets().Informer()
	s.kept = informer.GetIndexer()
	// It dies with the informer, so there is nothing to remove; and one that is new has no error.
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() }, UpdateFunc: func(_, _ any) { changed() }, DeleteFunc: func(any) { changed() },
	})
	factory.Start(ctx.Done())
	// A certificate is there before the port is open, or clients would see another one.
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cache.WaitForCacheSync(wait.Done(), informer.HasSynced)
}

// read returns what each of these Secrets holds.
func (s *secrets) read(refs map[certRef]bool) map[certRef]secretCert {
	next := map[certRef]secretCert{}
	for ref := range refs {
		secret := s.get(ref)
		switch have, ok := s.parsed[ref]; {
		case secret == nil:
			next[ref] = secretCert{err: fmt.Errorf("there is no Secret %s/%s", ref.namespace, ref.name)}
		case ok && have.version != "" && have.version == secret.ResourceVersion:
			next[ref] = have
		default:
			cert, err := parseSecret(secret)
			next[ref] = secretCert{secret.ResourceVersion, cert, err}
		}
	}
	s.parsed = next
	return next
}

func (s *secrets) get(ref certRef) *corev1.Secret {
	if s.kept == nil {
		return nil
	}
	obj, found, err := s.kept.GetByKey(ref.namespace + "/" + ref.name)
	if err != nil || !found {
		return nil
	}
	secret, _ := obj.(*corev1.Secret)
	return secret
}

// slim drops of a Secret what is no certificate. Informers may call it on its own result.
func slim(obj any) (any, error) {
	s, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	out := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion}}
	if cert, key := s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]; len(cert) > 0 || len(key) > 0 {
		out.Data = map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}
	}
	return out, nil
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

// refs are the Secrets that a table names.
func (t *table) refs() map[certRef]bool {
	out := map[certRef]bool{}
	for ref := range maps.Values(t.certs) {
		out[ref] = true
	}
	return out
}
