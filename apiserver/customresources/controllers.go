package customresources

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/apiapproval"
	"k8s.io/apiextensions-apiserver/pkg/controller/establish"
	"k8s.io/apiextensions-apiserver/pkg/controller/finalizer"
	"k8s.io/apiextensions-apiserver/pkg/controller/nonstructuralschema"
	"k8s.io/apiextensions-apiserver/pkg/controller/status"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// workers of each controller that may have several; upstream's 5 are for hundreds of definitions.
const workers = 2

// RunControllers runs what writes the status of definitions: whether their names are free,
// whether they are established, what is wrong with their schemas, and the deletion of
// their objects with them. It belongs to the leader, because the naming of two
// definitions at once must not be decided twice; ctx ends with the term. It begins with
// the first definition, and returns when ctx has ended and its event handlers are gone.
func (a *API) RunControllers(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.awake:
	}
	s, err := a.wake()
	if err != nil {
		return err
	}
	logger := logr.FromSlogHandler(a.cfg.Logger.Handler())
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logger))
	term := &termInformer{SharedIndexInformer: s.informer}
	kind, client := kindInformer{term, s.lister}, s.client.ApiextensionsV1()
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		if err := term.close(); err != nil {
			a.cfg.Logger.Error("event handlers of definitions are left", "err", err)
		}
	}()

	naming := status.NewNamingConditionController(logger, kind, client)
	establishing := establish.NewEstablishingController(kind, client)
	schemas := nonstructuralschema.NewConditionController(kind, client)
	approval := apiapproval.NewKubernetesAPIApprovalPolicyConformantConditionController(kind, client)
	deleting := finalizer.NewCRDFinalizer(kind, client, s.handler)
	if err := queueAccepted(term, establishing); err != nil {
		return err
	}
	if err := a.keepRegistered(ctx, &running, s, term); err != nil {
		return err
	}
	running.Go(func() { naming.RunWithContext(ctx) })
	running.Go(func() { establishing.RunWithContext(ctx) })
	running.Go(func() { schemas.RunWithContext(workers, ctx) })
	running.Go(func() { approval.RunWithContext(workers, ctx) })
	running.Go(func() { deleting.RunWithContext(workers, ctx) })
	<-ctx.Done()
	return nil
}

// queueAccepted hands definitions whose names are accepted to who establishes them.
// Upstream's request handler does that, on changes alone: here the leader that accepted a
// name may be gone before it was established.
func queueAccepted(informer cache.SharedIndexInformer, to *establish.EstablishingController) error {
	queue := func(obj any) {
		crd, ok := obj.(*definitionsv1.CustomResourceDefinition)
		if ok && apihelpers.IsCRDConditionTrue(crd, definitionsv1.NamesAccepted) && !apihelpers.IsCRDConditionTrue(crd, definitionsv1.Established) {
			to.QueueCRD(crd.Name, 0)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: queue, UpdateFunc: func(_, now any) { queue(now) }})
	if err != nil {
		return fmt.Errorf("watch definitions: %w", err)
	}
	return nil
}

// termInformer is the informer for a term of leadership: it takes back the event handlers
// that were added through it, because upstream's controllers never do.
type termInformer struct {
	cache.SharedIndexInformer

	mu       sync.Mutex
	handlers []cache.ResourceEventHandlerRegistration
}

func (t *termInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return t.remember(t.SharedIndexInformer.AddEventHandler(h))
}

func (t *termInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, d time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return t.remember(t.SharedIndexInformer.AddEventHandlerWithResyncPeriod(h, d))
}

func (t *termInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return t.remember(t.SharedIndexInformer.AddEventHandlerWithOptions(h, o))
}

func (t *termInformer) remember(r cache.ResourceEventHandlerRegistration, err error) (cache.ResourceEventHandlerRegistration, error) {
	if err == nil {
		t.mu.Lock()
		t.handlers = append(t.handlers, r)
		t.mu.Unlock()
	}
	return r, err
}

// close takes the handlers back. An informer that has stopped has none any more.
func (t *termInformer) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range t.handlers {
		errs = append(errs, t.RemoveEventHandler(r))
	}
	t.handlers = nil
	return errors.Join(errs...)
}
