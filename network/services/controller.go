package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/conntrack"
	"github.com/rundigitalplatform/rookery/network/nft"
)

// Rules is where the rules go; package network's Network is one.
type Rules interface {
	// Apply makes state the content of the section, writing only what differs.
	Apply(ctx context.Context, family knftables.Family, section string, state nft.State) error
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

	// The rest belongs to Run.
	families        []family
	health          healthPorts
	unanswered      bool // a port of health could not be opened
	lastSync        time.Time
	noConntrackSaid bool
}

// family is what the controller knows of one IP family.
type family struct {
	self     Self
	computer computer
	last     table
	current  bool // last is of the last sync
}

// New returns a controller that does nothing until Run.
func New(cfg Config) *Controller {
	if cfg.Alive == nil {
		cfg.Alive = func(string) bool { return true }
	}
	c := &Controller{cfg: cfg, dirty: make(chan struct{}, 1), more: make(chan struct{}, 1)}
	for _, self := range cfg.Families {
		c.families = append(c.families, family{self: self})
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
// ctx ends. The rules stay.
func (c *Controller) Run(ctx context.Context) error {
	kick := func() { notify(c.dirty) }
	services := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { kick() }, UpdateFunc: func(_, _ any) { kick() }, DeleteFunc: func(any) { kick() },
	}
	var synced []cache.InformerSynced
	slices := services
	slices.AddFunc = func(any) { notify(c.more) }
	slices.UpdateFunc = func(old, now any) {
		if onlyGrew(old.(*discoveryv1.EndpointSlice), now.(*discoveryv1.EndpointSlice)) {
			notify(c.more)
		} else {
			kick()
		}
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandlerFuncs{c.cfg.Services.Informer(): services, c.cfg.Slices.Informer(): slices} {
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
	kick()
	c.loop(ctx)
	return nil
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
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changed:
			if !ok {
				changed = nil
				continue
			}
		case <-c.dirty:
			wait(max(settle, pace-time.Since(c.lastSync)))
			continue
		case <-c.more:
			wait(max(settle, paceMore-time.Since(c.lastSync)))
			continue
		case <-due:
		}
		due = nil
		err := c.sync(ctx)
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
	if !equality.Semantic.DeepEqual(old.Ports, now.Ports) {
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

func (c *Controller) sync(ctx context.Context) error {
	start := time.Now()
	services, err := c.cfg.Services.Lister().List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	endpointSlices, err := c.cfg.Slices.Lister().List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list endpoint slices: %w", err)
	}
	sortByName(services)
	sortByName(endpointSlices)
	bySvc := byService(endpointSlices)
	zone := ""
	if c.cfg.Zone != nil {
		zone = c.cfg.Zone()
	}
	var errs []error
	for i := range c.families {
		f := &c.families[i]
		self := f.self
		self.Zone = zone
		want := f.computer.desired(services, bySvc, c.cfg.Split, c.cfg.Alive, self)
		err := c.cfg.Rules.Apply(ctx, self.family(), c.cfg.Section, want.rules)
		if f.current = err == nil; !f.current {
			errs = append(errs, err)
			continue // the other family is not to wait for it
		}
		// Only now: a flow that is forgotten earlier would be made again by the old rules.
		if flows := stale(f.last, want); flows != nil {
			c.forget(self.family(), flows)
		}
		f.last = want
	}
	// What is known from before of a family that failed counts for its own ports only.
	answers := map[uint16]health{}
	for _, current := range []bool{true, false} {
		for _, f := range c.families {
			if f.current != current {
				continue
			}
			for port, h := range f.last.health {
				if have, ok := answers[port]; !ok || current && h.LocalEndpoints > have.LocalEndpoints {
					answers[port] = h
				}
			}
		}
	}
	c.unanswered = !c.health.set(answers)
	c.lastSync = time.Now()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.cfg.Log.Debug("service rules are current", "services", len(services), "took", c.lastSync.Sub(start))
	return nil
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
