package ingress

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// settle collects the burst that one change of a Deployment makes; pace bounds how often
	// the table is built while many things change.
	settle, pace = 10 * time.Millisecond, 50 * time.Millisecond
	// again is when what could not be written is tried again.
	again = 10 * time.Second
)

// Proxy serves Ingresses on one peer. Make it with [New].
type Proxy struct {
	cfg     Config
	kinds   kinds
	dirty   chan struct{}
	handler atomic.Pointer[handler] // nil until the first Ingress
	certs   certificates

	mu   sync.Mutex
	open map[uint16]bool

	// The rest belongs to Run.
	endpoints map[string]*endpoint
	secrets   secrets // followed from the first Ingress that names one to the last Ingress
	published string
	looked    bool            // at what the Node says from before
	said      map[string]bool // about certificates
}

// kinds are the objects that are read.
type kinds struct {
	ingresses networkinglisters.IngressLister
	classes   networkinglisters.IngressClassLister
	services  cache.Indexer
}

// New makes a proxy that does nothing until [Proxy.Run]. Call it before the informers are started.
func New(cfg Config) (*Proxy, error) {
	if cfg.Slices == nil || cfg.Issue == nil {
		return nil, errors.New("ingress: Slices and Issue are required")
	}
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, kinds: newKinds(cfg.Informers), dirty: make(chan struct{}, 1), open: map[uint16]bool{}, endpoints: map[string]*endpoint{}}
	cfg.Informers.Discovery().V1().EndpointSlices().Informer() // asked for before they are started
	p.certs = certificates{issue: cfg.Issue, table: func() *table { return p.handler.Load().table.Load() }}
	return p, nil
}

// newKinds asks for the informers, which are started after that.
func newKinds(f informers.SharedInformerFactory) kinds {
	return kinds{
		ingresses: f.Networking().V1().Ingresses().Lister(), classes: f.Networking().V1().IngressClasses().Lister(),
		services: f.Core().V1().Services().Informer().GetIndexer(),
	}
}

// ours lists the Ingresses of our class.
func (k kinds) ours() ([]*networkingv1.Ingress, error) {
	classes, err := k.classes.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list ingress classes: %w", err)
	}
	all, err := k.ingresses.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list ingresses: %w", err)
	}
	return slices.DeleteFunc(all, func(ing *networkingv1.Ingress) bool { return !ours(ing, classes) }), nil
}

func (k kinds) service(namespace, name string) *corev1.Service {
	obj, found, err := k.services.GetByKey(namespace + "/" + name)
	if err != nil || !found {
		return nil
	}
	svc, _ := obj.(*corev1.Service)
	return svc
}

// Run serves until ctx ends, and returns nil then, when all it started is gone. Until the
// first Ingress, and again after the last, it has no port open and no more than a watch.
func (p *Proxy) Run(ctx context.Context) error {
	f := p.cfg.Informers
	var remove []func() error
	defer func() {
		for _, r := range remove {
			if err := r(); err != nil {
				p.cfg.Logger.Warn("handler could not be removed", "error", err)
			}
		}
	}()
	follow := func(informer cache.SharedIndexInformer, counts func(obj any) bool) error {
		kick := func(obj any) {
			if counts == nil || counts(obj) {
				p.kick()
			}
		}
		handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: kick, UpdateFunc: func(_, obj any) { kick(obj) }, DeleteFunc: kick})
		if err != nil {
			return fmt.Errorf("watch for ingress: %w", err)
		}
		remove = append(remove, func() error { return informer.RemoveEventHandler(handle) })
		return nil
	}
	for _, informer := range []cache.SharedIndexInformer{f.Networking().V1().Ingresses().Informer(), f.Networking().V1().IngressClasses().Informer()} {
		if err := follow(informer, nil); err != nil {
			return err
		}
	}
	p.cfg.StartInformers()
	synced := []cache.InformerSynced{
		f.Networking().V1().Ingresses().Informer().HasSynced, f.Networking().V1().IngressClasses().Informer().HasSynced,
		f.Core().V1().Services().Informer().HasSynced, f.Discovery().V1().EndpointSlices().Informer().HasSynced,
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	var open context.Context // from the first Ingress to the last
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	watching := false
	return p.loop(ctx, func() error {
		all, err := p.kinds.ours()
		if err != nil {
			return err
		}
		if len(all) > 0 && !watching {
			watching = true
			for _, informer := range []cache.SharedIndexInformer{f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer()} {
				if err := follow(informer, p.uses); err != nil {
					return err
				}
			}
		}
		switch {
		case len(all) > 0 && stop == nil:
			var end context.CancelFunc
			open, end = context.WithCancel(ctx)
			p.handler.Store(newHandler(p.cfg))
			p.apply(open, all)
			wait := p.openDoors(open)
			stop = func() { end(); wait() }
		case len(all) == 0 && stop != nil:
			stop()
			stop = nil
			p.secrets = secrets{}
			p.apply(open, nil)
			p.handler.Load().to.close()
		case len(all) > 0:
			p.apply(open, all)
		}
		return p.publish(ctx)
	})
}

// loop calls sync whenever something has changed.
func (p *Proxy) loop(ctx context.Context, sync func() error) error {
	p.kick()
	var last time.Time
	changed := p.cfg.Changed
	for {
		now := false
		select {
		case <-ctx.Done():
			return nil
		case <-p.dirty:
		case _, now = <-changed: // a peer died: without a pause
			if !now {
				changed = nil
				continue
			}
		}
		if !now {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(settle, pace-time.Since(last))):
			}
		}
		last = time.Now()
		if err := sync(); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Warn("Ingresses are not all as wanted, trying again", "error", err)
			time.AfterFunc(again, p.kick)
		}
	}
}

func (p *Proxy) kick() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

// uses tells whether an object is a Service, or a slice of one, that the table has.
func (p *Proxy) uses(obj any) bool {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	h := p.handler.Load()
	if h == nil {
		return false
	}
	switch o := obj.(type) {
	case *corev1.Service:
		return h.table.Load().used[o.Namespace+"/"+o.Name]
	case *discoveryv1.EndpointSlice:
		return h.table.Load().used[o.Namespace+"/"+o.Labels[discoveryv1.LabelServiceName]]
	}
	return true
}

// apply builds the table anew and lets go of endpoints on dead peers.
func (p *Proxy) apply(ctx context.Context, all []*networkingv1.Ingress) {
	t, f, _ := tableOf(p.cfg, p.kinds, all, p.endpoints)
	p.endpoints = f.found
	if len(t.certs) > 0 {
		p.secrets.follow(ctx, p.cfg.Client, p.kick)
	}
	held := p.secrets.read(t.refs())
	p.certs.update(held)
	p.complain(held)
	h := p.handler.Load()
	h.table.Store(t)
	if len(f.dead) > 0 {
		h.to.conns.cut(func(addr string) bool { return f.dead[addr] })
	}
}

// complain logs what is wrong with certificates, once for as long as it is.
func (p *Proxy) complain(held map[certRef]secretCert) {
	said := map[string]bool{}
	for _, s := range held {
		if s.err == nil {
			continue
		}
		said[s.err.Error()] = true
		if !p.said[s.err.Error()] {
			p.cfg.Logger.Warn("a certificate of the cluster's CA is shown instead of a Secret's", "error", s.err)
		}
	}
	p.said = said
}

// tableOf builds the table of these Ingresses. known are the endpoints there were.
func tableOf(cfg Config, k kinds, all []*networkingv1.Ingress, known map[string]*endpoint) (*table, *finder, []problem) {
	f := &finder{
		service: k.service, slices: cfg.Slices, alive: cfg.Alive, known: known,
		found: map[string]*endpoint{}, dead: map[string]bool{}, done: map[string]*backend{},
	}
	b := &builder{defaults: options{timeout: cfg.Timeout, maxBody: cfg.MaxBody}, backend: f.find}
	b.build(all)
	return b.table, f, b.problems
}

// openDoors opens the ports until ctx ends; the function that it returns waits for that.
func (p *Proxy) openDoors(ctx context.Context) (wait func()) {
	if p.cfg.HTTP == 0 && p.cfg.HTTPS == 0 {
		p.cfg.Logger.Warn("there are Ingresses, and this peer serves none: ingress-http and ingress-https are 0")
	}
	var running sync.WaitGroup
	h := p.handler.Load()
	for _, d := range []*door{{port: p.cfg.HTTP}, {port: p.cfg.HTTPS, tls: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.certs.get}}} {
		if d.port == 0 {
			continue
		}
		d.handler, d.logger, d.opened = h, p.cfg.Logger, p.opened
		running.Go(func() { d.serve(ctx) })
	}
	return running.Wait
}

func (p *Proxy) opened(port uint16, open bool) {
	p.mu.Lock()
	p.open[port] = open
	p.mu.Unlock()
	p.kick()
}

// publish says on this peer's Node which ports are open, for the leader to tell the world.
func (p *Proxy) publish(ctx context.Context) error {
	p.mu.Lock()
	var ports []string
	for _, port := range []uint16{p.cfg.HTTP, p.cfg.HTTPS} {
		if p.open[port] {
			ports = append(ports, strconv.Itoa(int(port)))
		}
	}
	p.mu.Unlock()
	want := strings.Join(ports, ",")
	if !p.looked {
		node, err := p.cfg.Client.CoreV1().Nodes().Get(ctx, p.cfg.Node, metav1.GetOptions{ResourceVersion: "0"})
		switch {
		case err == nil:
			p.published = node.Annotations[PortsAnnotation]
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("read the Node: %w", err)
		}
		p.looked = true
	}
	if want == p.published {
		return nil
	}
	var value any = want
	if want == "" {
		value = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{PortsAnnotation: value}}})
	if err != nil {
		return err
	}
	if _, err := p.cfg.Client.CoreV1().Nodes().Patch(ctx, p.cfg.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("note the open ports on the Node: %w", err)
	}
	p.published = want
	return nil
}
