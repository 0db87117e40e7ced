package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/tools/cache"
)

// Term is a view of a process's informer factory that lasts for a term of
// leadership, or for one life of one controller. It shares the caches and
// remembers which event handlers were added through it: Kubernetes' controllers
// add them and never take them back, because there the process ends with them.
//
// No event is delivered before [Term.Start]. Upstream's constructors add handlers
// before they have set all that these use, which is safe there because informers
// are started last; here they run already.
//
// It may be used concurrently.
type Term struct {
	informers.SharedInformerFactory
	start func()

	opened, ended chan struct{} // closed by Start and by Close

	mu       sync.Mutex
	isOpen   bool
	closed   bool
	handlers []registration
}

type registration struct {
	informer cache.SharedIndexInformer
	handle   cache.ResourceEventHandlerRegistration
}

// NewTerm makes a view of f. start is called instead of f's own Start and must
// start f's informers for the life of the process: an informer that has stopped
// cannot be started again.
func NewTerm(f informers.SharedInformerFactory, start func()) *Term {
	return &Term{SharedInformerFactory: f, start: start, opened: make(chan struct{}), ended: make(chan struct{})}
}

// Close removes every event handler that was added through t. Nothing may be
// added after it.
func (t *Term) Close() error {
	t.mu.Lock()
	handlers := t.handlers
	if !t.closed {
		close(t.ended)
	}
	t.handlers, t.closed = nil, true
	t.mu.Unlock()
	var errs []error
	for _, r := range handlers {
		if err := r.informer.RemoveEventHandler(r.handle); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove event handlers: %w", err)
	}
	return nil
}

// InformerFor returns the shared informer, wrapped.
func (t *Term) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return &termInformer{SharedIndexInformer: t.SharedInformerFactory.InformerFor(obj, newFunc), term: t}
}

// ForResource is like the factory's, with the informer wrapped.
func (t *Term) ForResource(resource schema.GroupVersionResource) (informers.GenericInformer, error) {
	generic, err := t.SharedInformerFactory.ForResource(resource)
	if err != nil {
		return nil, err
	}
	// Asked for here, so that the next Start starts it.
	return &termGeneric{GenericInformer: generic, informer: &termInformer{SharedIndexInformer: generic.Informer(), term: t}}, nil
}

// Start starts what was asked for, for the life of the process, and lets events
// through; the channel is not looked at. It may be called again.
func (t *Term) Start(<-chan struct{}) {
	t.mu.Lock()
	if !t.isOpen {
		t.isOpen = true
		close(t.opened)
	}
	t.mu.Unlock()
	t.start()
}

// StartWithContext is like Start.
func (t *Term) StartWithContext(context.Context) { t.Start(nil) }

// Shutdown does nothing: the informers outlive the term.
func (t *Term) Shutdown() {}

func (t *Term) remember(informer cache.SharedIndexInformer, handle cache.ResourceEventHandlerRegistration, err error) (cache.ResourceEventHandlerRegistration, error) {
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.handlers = append(t.handlers, registration{informer, handle})
	}
	t.mu.Unlock()
	if closed {
		return nil, errors.Join(errors.New("the term is over"), informer.RemoveEventHandler(handle))
	}
	return handle, nil
}

type termGeneric struct {
	informers.GenericInformer
	informer cache.SharedIndexInformer
}

func (g *termGeneric) Informer() cache.SharedIndexInformer { return g.informer }

// termInformer is a shared informer whose handlers belong to a term.
type termInformer struct {
	cache.SharedIndexInformer
	term *Term
}

func (i *termInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	handle, err := i.SharedIndexInformer.AddEventHandler(&gate{i.term, h})
	return i.term.remember(i.SharedIndexInformer, handle, err)
}

func (i *termInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, resync time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	handle, err := i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(&gate{i.term, h}, resync)
	return i.term.remember(i.SharedIndexInformer, handle, err)
}

func (i *termInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	handle, err := i.SharedIndexInformer.AddEventHandlerWithOptions(&gate{i.term, h}, o)
	return i.term.remember(i.SharedIndexInformer, handle, err)
}

// gate holds events back until the term's Start, and drops them after its Close. Each
// handler has a goroutine and a queue of its own, so waiting holds up nobody else.
type gate struct {
	term    *Term
	handler cache.ResourceEventHandler
}

func (g *gate) open() bool {
	select {
	case <-g.term.ended:
		return false
	default:
	}
	select {
	case <-g.term.opened:
		return true
	case <-g.term.ended:
		return false
	}
}

func (g *gate) OnAdd(obj any, initial bool) {
	if g.open() {
		g.handler.OnAdd(obj, initial)
	}
}

func (g *gate) OnUpdate(old, obj any) {
	if g.open() {
		g.handler.OnUpdate(old, obj)
	}
}

func (g *gate) OnDelete(obj any) {
	if g.open() {
		g.handler.OnDelete(obj)
	}
}

// RemoveEventHandler leaves the registration in the term: to remove it again does nothing.
func (i *termInformer) RemoveEventHandler(handle cache.ResourceEventHandlerRegistration) error {
	return i.SharedIndexInformer.RemoveEventHandler(handle)
}

// AddIndexers adds those that are not there yet. Indexes stay when the term ends: they
// are functions of the object alone, and the next term wants the same ones.
func (i *termInformer) AddIndexers(indexers cache.Indexers) error {
	missing := i.without(indexers)
	for len(missing) > 0 {
		err := i.SharedIndexInformer.AddIndexers(missing)
		if err == nil {
			return nil
		}
		before := len(missing)
		if missing = i.without(missing); len(missing) == before {
			return err
		} // another controller of this process has added some in between
	}
	return nil
}

// without returns those that the informer does not have.
func (i *termInformer) without(indexers cache.Indexers) cache.Indexers {
	have := i.GetIndexer().GetIndexers()
	missing := cache.Indexers{}
	for name, f := range indexers {
		if _, ok := have[name]; !ok {
			missing[name] = f
		}
	}
	return missing
}

// Run does nothing but wait: the process runs the informer.
func (i *termInformer) Run(stop <-chan struct{}) { <-stop }

// RunWithContext is like Run.
func (i *termInformer) RunWithContext(ctx context.Context) { <-ctx.Done() }

// all is the namespace of the group accessors in term_groups.go.
const all = metav1.NamespaceAll
