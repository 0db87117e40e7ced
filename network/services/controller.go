package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/conntrack"
	"github.com/rundigitalplatform/rookery/network/nft"
)

// Rules is where the rules go; package network's Network is one.
type Rules interface {
	// Apply makes state, which is not the caller's any more, the content of the section,
	// writing only what differs.
	Apply(ctx context.Context, family knftables.Family, section string, state nft.State) error
	// Patch changes what was applied. After an error the section has to be applied anew.
	Patch(ctx context.Context, family knftables.Family, section string, patch nft.Patch) error
}

// Config is what a [Controller] is made from; all fields but Alive, Changed, Zone and Split are required.
type Config struct {
	Services coreinformers.ServiceInformer
	Slices   discoveryinformers.EndpointSliceInformer
	// Alive tells whether a node lives as far as is known right now; nil: all do.
	// It must not block.
	Alive func(node string) bool
	// Changed gets a value whenever Alive's answers change. The rules follow at once.
	Changed <-chan struct{}
	// Zone is the zone of this peer's Node (topology.kubernetes.io/zone), "" for none; nil:
	// always none. It must not block, and is asked whenever rules are written.
	Zone func() string
	// Split says how a Service divides its connections between groups of endpoints, nil
	// for not at all; nil: none does. It must not block; Changed tells that it answers anew.
	Split   func(*corev1.Service) *Split
	Rules   Rules
	Section string // of Rules
	// Families are the cluster's IP families, one or two; their Zones are not looked at.
	Families []Self
	Log      *slog.Logger
}

// Controller keeps the rules equal to the Services.
type Controller struct {
	cfg   Config
	dirty chan struct{} // something changed
	more  chan struct{} // only endpoints came

	mu      sync.Mutex
	changed map[string]struct{} // Services that did, or whose endpoints did, by key

	// The rest belongs to Run.
	families        []*family
	health          healthPorts
	unanswered      bool // a port of health could not be opened
	lastSync        time.Time
	noConntrackSaid bool
}

// New returns a controller that does nothing until Run.
func New(cfg Config) *Controller {
	if cfg.Alive == nil {
		cfg.Alive = func(string) bool { return true }
	}
	c := &Controller{cfg: cfg, dirty: make(chan struct{}, 1), more: make(chan struct{}, 1), changed: map[string]struct{}{}}
	for _, self := range cfg.Families {
		c.families = append(c.families, &family{self: self, udp: map[frontend]endpoints{}, health: map[uint16]health{}})
	}
	c.health = healthPorts{log: cfg.Log, network: listenOn(cfg.Families), open: map[uint16]*healthPort{}, died: func() { time.AfterFunc(retryMax, func() { notify(c.dirty) }) }}
	return c
}

const (
	// settle collects the burst that one change of a Deployment makes.
	settle = 10 * time.Millisecond
	// pace bounds how often rules are written while many things change.
	pace = 50 * time.Millisecond
	// paceMore is that while nothing but new endpoints comes, as when a Deployment grows:
	// each writing takes processor time from the pods that start, and the others serve.
	paceMore = 300 * time.Millisecond
	// retryMin and retryMax bound the pause after rules could not be written.
	retryMin, retryMax = 100 * time.Millisecond, 5 * time.Second
)

// Run waits for the informers (which somebody else starts) and keeps the rules until
// ctx ends. The rules stay. It may be called once: it adds an index to the informers.
func (c *Controller) Run(ctx context.Context) error {
	if err := c.cfg.Slices.Informer().AddIndexers(cache.Indexers{byService: serviceOf}); err != nil {
		return fmt.Errorf("index endpoint slices: %w", err)
	}
	kick := func(obj any) { c.note(c.dirty, obj) }
	ofServices := cache.ResourceEventHandlerFuncs{AddFunc: kick, UpdateFunc: func(_, now any) { kick(now) }, DeleteFunc: kick}
	var synced []cache.InformerSynced
	ofSlices := cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) { c.note(c.more, obj) }, UpdateFunc: c.sliceChanged, DeleteFunc: kick}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandlerFuncs{c.cfg.Services.Informer(): ofServices, c.cfg.Slices.Informer(): ofSlices} {
		handle, err := informer.AddEventHandler(handler)
		if err != nil {
			return fmt.Errorf("watch services: %w", err)
		}
		defer func() {
			if err := informer.RemoveEventHandler(handle); err != nil {
				c.cfg.Log.Warn("handler could not be removed", "error", err)
			}
		}()
		synced = append(synced, handle.HasSynced)
	}
	// Rules from half a list would cut Services off that worked before the start.
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	defer c.health.close()
	notify(c.dirty)
	c.loop(ctx)
	return nil
}

// note remembers the Service that an object is or belongs to, and wakes the loop.
func (c *Controller) note(wake chan struct{}, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	var key string
	switch o := obj.(type) {
	case *corev1.Service:
		key = o.Namespace + "/" + o.Name
	case *discoveryv1.EndpointSlice:
		key = serviceKey(o)
	}
	c.mu.Lock()
	c.changed[key] = struct{}{}
	c.mu.Unlock()
	notify(wake)
}

func (c *Controller) sliceChanged(old, now any) {
	wake := c.dirty
	if onlyGrew(old.(*discoveryv1.EndpointSlice), now.(*discoveryv1.EndpointSlice)) {
		wake = c.more
	}
	c.note(wake, old) // it may have been another Service's
	c.note(wake, now)
}

func (c *Controller) loop(ctx context.Context) {
	changed := c.cfg.Changed
	var due <-chan time.Time
	var at time.Time // of due
	wait := func(d time.Duration) {
		if due == nil || time.Until(at) > d {
			due, at = time.After(d), time.Now().Add(d)
		}
	}
	retry := retryMin
	for {
		all := false // may have changed without being noted
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changed:
			if !ok {
				changed = nil
				continue
			}
			all = true
		case <-c.dirty:
			wait(max(settle, pace-time.Since(c.lastSync)))
			continue
		case <-c.more:
			wait(max(settle, paceMore-time.Since(c.lastSync)))
			continue
		case <-due:
		}
		due = nil
		err := c.sync(ctx, all)
		if err == nil {
			retry = retryMin
			if c.unanswered {
				wait(retryMax)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		c.cfg.Log.Error("service rules could not be written, trying again", "error", err, "pause", retry)
		wait(retry)
		retry = min(2*retry, retryMax)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// onlyGrew: everything that could be sent to still can be, at the same ports.
func onlyGrew(old, now *discoveryv1.EndpointSlice) bool {
	if !equality.Semantic.DeepEqual(old.Ports, now.Ports) || serviceKey(old) != serviceKey(now) {
		return false
	}
	kept := map[string]bool{"": true}
	for i := range now.Endpoints {
		kept[endpointKey(&now.Endpoints[i])] = true
	}
	for i := range old.Endpoints {
		if !kept[endpointKey(&old.Endpoints[i])] {
			return false
		}
	}
	return true
}

// endpointKey changes with what decides whether and how an endpoint is sent to. One that is
// not used is the same as none.
func endpointKey(e *discoveryv1.Endpoint) string {
	ready := e.Conditions.Ready == nil || *e.Conditions.Ready
	serving := e.Conditions.Serving != nil && *e.Conditions.Serving
	if !ready && !serving {
		return ""
	}
	return fmt.Sprint(e.Addresses, ready, serving)
}

// sync brings the rules to those of the Services that are noted, or of all.
func (c *Controller) sync(ctx context.Context, all bool) error {
	start := time.Now()
	c.mu.Lock()
	noted := c.changed
	c.changed = map[string]struct{}{}
	c.mu.Unlock()
	zone := ""
	if c.cfg.Zone != nil {
		zone = c.cfg.Zone()
	}
	for _, f := range c.families {
		if f.self.Zone != zone {
			f.self.Zone, f.current = zone, false
		}
		all = all || !f.current
	}
	if all {
		for _, key := range c.cfg.Services.Informer().GetIndexer().ListKeys() {
			noted[key] = struct{}{}
		}
	}
	now := objects{service: c.service, slices: c.slices, split: c.cfg.Split, alive: c.cfg.Alive}
	var errs []error
	for _, f := range c.families {
		flows, err := f.write(ctx, c.cfg.Rules, c.cfg.Section, maps.Keys(noted), now)
		if err != nil {
			errs = append(errs, err)
			continue // the other family is not to wait for it
		}
		// Only now: a flow that is forgotten earlier would be made again by the old rules.
		if flows != nil {
			c.forget(f.self.family(), flows)
		}
	}
	c.unanswered = !c.health.set(c.answers())
	c.lastSync = time.Now()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.cfg.Log.Debug("service rules are current", "services", len(noted), "took", c.lastSync.Sub(start))
	return nil
}

func (c *Controller) service(key string) *corev1.Service {
	obj, _, err := c.cfg.Services.Informer().GetIndexer().GetByKey(key)
	if err != nil {
		return nil // which the store of an informer never has
	}
	svc, _ := obj.(*corev1.Service)
	return svc
}

func (c *Controller) slices(key string) []*discoveryv1.EndpointSlice {
	found, err := c.cfg.Slices.Informer().GetIndexer().ByIndex(byService, key)
	if err != nil {
		return nil // only without the index, which Run has added
	}
	out := make([]*discoveryv1.EndpointSlice, 0, len(found))
	for _, obj := range found {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// answers are what the families say by health port: what is known from before of one that
// failed counts for its own ports only.
func (c *Controller) answers() map[uint16]health {
	answers := map[uint16]health{}
	for _, current := range []bool{true, false} {
		for _, f := range c.families {
			if f.current != current {
				continue
			}
			for port, h := range f.health {
				if have, ok := answers[port]; !ok || current && h.LocalEndpoints > have.LocalEndpoints {
					answers[port] = h
				}
			}
		}
	}
	return answers
}

// forget deletes flows. A failure is no reason to write the rules again.
func (c *Controller) forget(family knftables.Family, flows *staleFlows) {
	n, err := conntrack.Delete(family, flows)
	switch {
	case errors.Is(err, conntrack.ErrUnavailable):
		if !c.noConntrackSaid {
			c.cfg.Log.Warn("stale connections cannot be ended", "error", err)
			c.noConntrackSaid = true
		}
	case err != nil:
		c.cfg.Log.Warn("stale connections could not be ended", "error", err)
	case n > 0:
		c.cfg.Log.Info("ended stale connections", "connections", n, "dead endpoints", len(flows.newDead))
	}
}
