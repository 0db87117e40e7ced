package ingress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
)

// Status is the leader's work: the IngressClass, the addresses in Ingresses' status, and Events
// about what an Ingress asks for that cannot be had. It blocks until ctx ends. Changed is of cfg;
// cfg.Informers are a term's, which the caller closes.
func Status(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return err
	}
	s := &status{cfg: cfg, kinds: newKinds(cfg.Informers)}
	dirty := make(chan struct{}, 1)
	kick := func(any) {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	s.kick, s.complaints = kick, complaints{client: cfg.Client, kick: kick, known: map[string]*complaint{}}
	f := cfg.Informers
	for _, informer := range []cache.SharedIndexInformer{
		f.Networking().V1().Ingresses().Informer(), f.Networking().V1().IngressClasses().Informer(), f.Core().V1().Services().Informer(),
	} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: kick, UpdateFunc: func(_, obj any) { kick(obj) }, DeleteFunc: kick}); err != nil {
			return fmt.Errorf("watch for ingress: %w", err)
		}
	}
	nodes := f.Core().V1().Nodes()
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: kick, DeleteFunc: kick, UpdateFunc: func(old, obj any) {
		// Nodes are written for many reasons.
		a, b := old.(*corev1.Node), obj.(*corev1.Node)
		if a.Annotations[PortsAnnotation] != b.Annotations[PortsAnnotation] || !equality.Semantic.DeepEqual(a.Status.Addresses, b.Status.Addresses) {
			kick(obj)
		}
	}})
	if err != nil {
		return fmt.Errorf("watch nodes for ingress: %w", err)
	}
	s.nodes = func() ([]*corev1.Node, error) { return nodes.Lister().List(labels.Everything()) }
	f.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), f.Networking().V1().Ingresses().Informer().HasSynced, f.Networking().V1().IngressClasses().Informer().HasSynced,
		f.Core().V1().Services().Informer().HasSynced, nodes.Informer().HasSynced) {
		return nil
	}
	if err := s.ensureClass(ctx); err != nil {
		return err
	}
	kick(nil)
	changed := cfg.Changed
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changed:
			if !ok {
				changed = nil
			}
		case <-dirty:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pace):
			}
		}
		if err := s.sync(ctx); err != nil && ctx.Err() == nil {
			cfg.Logger.Warn("status of Ingresses is not all written, trying again", "error", err)
			time.AfterFunc(again, func() { kick(nil) })
		}
	}
}

type status struct {
	cfg   Config
	kinds kinds
	nodes func() ([]*corev1.Node, error)
	kick  func(any)
	// secrets are followed from the first Ingress that names one on.
	secrets    secrets
	complaints complaints
	// nobody is since when no peer serves Ingresses though there are some; zero: one does.
	nobody time.Time
}

// nobodyFor is how long peers have to open their ports before it is told that none did.
const nobodyFor = 30 * time.Second

// ensureClass makes our IngressClass if there is none, the default one if no other is.
func (s *status) ensureClass(ctx context.Context) error {
	classes, err := s.kinds.classes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list ingress classes: %w", err)
	}
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: ClassName}, Spec: networkingv1.IngressClassSpec{Controller: ControllerName}}
	isDefault := func(c *networkingv1.IngressClass) bool {
		return c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
	}
	if !slices.ContainsFunc(classes, isDefault) {
		class.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	}
	if slices.ContainsFunc(classes, func(c *networkingv1.IngressClass) bool { return c.Spec.Controller == ControllerName }) {
		return nil
	}
	_, err = s.cfg.Client.NetworkingV1().IngressClasses().Create(ctx, class, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make ingress class: %w", err)
	}
	return nil
}

func (s *status) sync(ctx context.Context) error {
	all, err := s.kinds.ours()
	if err != nil || len(all) == 0 {
		return err
	}
	want, err := s.addresses()
	if err != nil {
		return err
	}
	var errs []error
	for _, ing := range all {
		if equality.Semantic.DeepEqual(ing.Status.LoadBalancer.Ingress, want) {
			continue
		}
		next := ing.DeepCopy()
		next.Status.LoadBalancer.Ingress = want
		if _, err := s.cfg.Client.NetworkingV1().Ingresses(ing.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("write status of %s/%s: %w", ing.Namespace, ing.Name, err))
		}
	}
	_, _, problems := tableOf(s.cfg, s.kinds, all, nil)
	if s.nobodyServes(len(want)) {
		for _, ing := range all {
			problems = append(problems, problem{ing, "no peer serves Ingresses: their ports are turned off (ingress-http, ingress-https) or somebody else's, the peers' logs say which"})
		}
	}
	problems = append(problems, s.certificates(ctx, all)...)
	return errors.Join(append(errs, s.complaints.update(ctx, problems))...)
}

// certificates tells which Secrets that Ingresses name hold no certificate.
func (s *status) certificates(ctx context.Context, all []*networkingv1.Ingress) (problems []problem) {
	named := map[certRef][]*networkingv1.Ingress{}
	refs := map[certRef]bool{}
	for _, ing := range all {
		if s.cfg.ACME.Directory != "" && ing.Annotations[annotationACME] == "true" {
			continue // it comes with the certificate, and Certificates tells why not
		}
		for _, t := range ing.Spec.TLS {
			if ref := (certRef{ing.Namespace, t.SecretName}); t.SecretName != "" && !slices.Contains(named[ref], ing) {
				named[ref], refs[ref] = append(named[ref], ing), true
			}
		}
	}
	if len(refs) == 0 {
		return nil
	}
	s.secrets.follow(ctx, s.cfg.Client, func() { s.kick(nil) })
	for ref, held := range s.secrets.read(refs) {
		if held.err == nil {
			continue
		}
		for _, ing := range named[ref] {
			problems = append(problems, problem{ing, held.err.Error() + "; clients are shown a certificate of the cluster's CA"})
		}
	}
	return problems
}

// nobodyServes says that no peer has had a port open for a while.
func (s *status) nobodyServes(peers int) bool {
	switch {
	case peers > 0:
		s.nobody = time.Time{}
		return false
	case s.nobody.IsZero():
		s.nobody = time.Now()
		time.AfterFunc(nobodyFor, func() { s.kick(nil) })
	}
	return time.Since(s.nobody) >= nobodyFor
}

// addresses are those of the living peers that serve Ingresses, without hidden ones if there are others.
func (s *status) addresses() (out []networkingv1.IngressLoadBalancerIngress, err error) {
	nodes, err := s.nodes()
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var hidden []networkingv1.IngressLoadBalancerIngress
	for _, n := range nodes {
		if n.Annotations[PortsAnnotation] == "" || !s.cfg.Alive(n.Name) {
			continue
		}
		to := &out
		if s.cfg.Hidden(n.Name) {
			to = &hidden
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				*to = append(*to, networkingv1.IngressLoadBalancerIngress{IP: a.Address})
			}
		}
	}
	if len(out) == 0 {
		out = hidden
	}
	slices.SortFunc(out, func(a, b networkingv1.IngressLoadBalancerIngress) int { return strings.Compare(a.IP, b.IP) })
	return out, nil
}
