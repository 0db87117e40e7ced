package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/tools/cache"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/conntrack"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Network is where the rules go and the addresses come from; package network's Network is one.
type Network interface {
	// Apply makes state the content of the section, writing only what differs.
	Apply(ctx context.Context, family knftables.Family, section string, state nft.State) error
	// Addresses are those of this peer's pods, by UID.
	Addresses() map[string][]netip.Addr
}

// Config is what a [Controller] is made from; all fields are required.
type Config struct {
	Policies   networkinginformers.NetworkPolicyInformer
	Pods       coreinformers.PodInformer
	Namespaces coreinformers.NamespaceInformer
	Network    Network
	Section    string // of Network
	Families   []Self // one of each IP family of the cluster
	Log        *slog.Logger
}

// Controller keeps the rules equal to the policies. It is a prometheus.Collector as well.
type Controller struct {
	cfg   Config
	dirty chan struct{}
	now   chan struct{}

	mu      sync.Mutex
	wanted  uint64        // counts who asked for rules by Admit
	applied uint64        // of them, those whose pod is in the rules
	done    chan struct{} // closed and replaced whenever applied grows
	// policies and isolated are what the rules were made from.
	policies int
	isolated map[direction]int

	// The rest belongs to Run.
	last            map[knftables.Family]nft.State // what was written
	ended           map[knftables.Family]disallowed
	look            <-chan time.Time // at what was ended; nil: not again
	pause           time.Duration    // before the next look
	noConntrackSaid bool
}

// New asks for the informers, which somebody else starts, and returns a controller that
// does nothing until Run.
func New(cfg Config) *Controller {
	cfg.Policies.Informer()
	cfg.Pods.Informer()
	cfg.Namespaces.Informer()
	return &Controller{cfg: cfg, dirty: make(chan struct{}, 1), now: make(chan struct{}, 1), done: make(chan struct{}), last: map[knftables.Family]nft.State{}, ended: map[knftables.Family]disallowed{}}
}

const (
	// settle collects the burst that one change of a Deployment makes.
	settle = 10 * time.Millisecond
	// pace bounds how often rules are written while many things change.
	pace = 50 * time.Millisecond
	// retryMin and retryMax bound the pause after rules could not be written.
	retryMin, retryMax = 100 * time.Millisecond, 5 * time.Second
	// lookMin to lookMax are the pauses, each twice the one before, between the looks at
	// connections that were ended: an answer under way takes no longer than all of them.
	lookMin, lookMax = 200 * time.Millisecond, 30 * time.Second
)

// Admit waits until the rules are those of a state that includes the pods that have an
// address now. It is called for a pod between its address and its interface, so that no
// pod runs before its policies. It returns at once where there are no policies.
func (c *Controller) Admit(ctx context.Context) error {
	c.mu.Lock()
	c.wanted++
	mine := c.wanted
	c.mu.Unlock()
	signal(c.now)
	for {
		c.mu.Lock()
		applied, done := c.applied, c.done
		c.mu.Unlock()
		if applied >= mine {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the network policies: %w", context.Cause(ctx))
		}
	}
}

// Run waits for the informers and keeps the rules until
// ctx ends. The rules stay.
func (c *Controller) Run(ctx context.Context) error {
	kick := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { signal(c.dirty) }, DeleteFunc: func(any) { signal(c.dirty) },
		UpdateFunc: func(old, is any) {
			if matters(old, is) {
				signal(c.dirty)
			}
		},
	}
	var synced []cache.InformerSynced
	for _, informer := range []cache.SharedIndexInformer{c.cfg.Policies.Informer(), c.cfg.Pods.Informer(), c.cfg.Namespaces.Informer()} {
		handle, err := informer.AddEventHandler(kick)
		if err != nil {
			return fmt.Errorf("watch network policies: %w", err)
		}
		defer func() {
			if err := informer.RemoveEventHandler(handle); err != nil {
				c.cfg.Log.Warn("handler could not be removed", "error", err)
			}
		}()
		synced = append(synced, handle.HasSynced)
	}
	// Rules from half a list would let through what is not allowed.
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	signal(c.now)
	c.loop(ctx)
	return nil
}

// matters tells whether an update can change the rules: most of a pod's status cannot.
func matters(old, is any) bool {
	before, ok1 := old.(*corev1.Pod)
	after, ok2 := is.(*corev1.Pod)
	if !ok1 || !ok2 {
		return old.(metav1.Object).GetResourceVersion() != is.(metav1.Object).GetResourceVersion()
	}
	return !maps.Equal(before.Labels, after.Labels) || before.Spec.NodeName != after.Spec.NodeName ||
		before.Status.Phase != after.Status.Phase || !slices.Equal(addresses(before), addresses(after))
}

func (c *Controller) loop(ctx context.Context) {
	var due <-chan time.Time
	var lastSync time.Time
	retry := retryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.dirty:
			if due == nil {
				due = time.After(max(settle, pace-time.Since(lastSync)))
			}
			continue
		case <-c.look:
			c.endAgain()
			continue
		case <-c.now:
		case <-due:
		}
		due = nil
		err := c.sync(ctx)
		lastSync = time.Now()
		if err == nil {
			retry = retryMin
			continue
		}
		if ctx.Err() != nil {
			return
		}
		c.cfg.Log.Error("network policies could not be written, trying again", "error", err, "pause", retry)
		due = time.After(retry)
		retry = min(2*retry, retryMax)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *Controller) sync(ctx context.Context) error {
	c.mu.Lock()
	mine := c.wanted
	c.mu.Unlock()
	o, err := c.read()
	if err != nil {
		return err
	}
	isolated := map[direction]int{}
	var errs []error
	for i, self := range c.cfg.Families {
		m, err := compile(o, self)
		if err != nil && i == 0 { // the same in each
			c.cfg.Log.Error("a network policy is not readable: that part of it allows nothing", "error", err)
		}
		if err := c.write(ctx, m); err != nil {
			errs = append(errs, err)
			continue // the other family is not to wait for it
		}
		for dir, pods := range m.isolated { // a pod has an address of each family
			isolated[dir] = max(isolated[dir], len(pods))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied, c.policies, c.isolated = mine, len(o.policies), isolated
	close(c.done)
	c.done = make(chan struct{})
	return nil
}

// write brings one family's rules to the model, and ends what it does not allow any more.
func (c *Controller) write(ctx context.Context, m model) error {
	last, synced := c.last[m.family]
	want := m.rules()
	if !synced || len(last.Chains)+len(want.Chains) > 0 {
		if err := c.cfg.Network.Apply(ctx, m.family, c.cfg.Section, want); err != nil {
			return err
		}
	}
	if d, ok := c.ended[m.family]; ok {
		c.ended[m.family] = d.under(m)
	}
	// Only now: a flow that is ended earlier would be let through again by the old rules.
	if !synced && len(want.Chains) > 0 || narrower(last, want) {
		c.end(m)
	}
	c.last[m.family] = want
	return nil
}

// read returns the objects in an order that does not matter to the rules. Without policies
// the pods are not even listed.
func (c *Controller) read() (o objects, err error) {
	if o.policies, err = c.cfg.Policies.Lister().List(labels.Everything()); err != nil || len(o.policies) == 0 {
		return o, err
	}
	slices.SortFunc(o.policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	if o.namespaces, err = c.cfg.Namespaces.Lister().List(labels.Everything()); err != nil {
		return o, err
	}
	o.local = c.cfg.Network.Addresses()
	o.pods, err = c.cfg.Pods.Lister().List(labels.Everything())
	return o, err
}

// narrower tells whether something may be let through by was and not by is.
func narrower(was, is nft.State) bool {
	for name, chain := range is.Chains {
		if old, ok := was.Chains[name]; !ok || !slices.Equal(old.Rules, chain.Rules) {
			return true
		}
	}
	for name, set := range was.Sets {
		for key := range set.Elements {
			if _, ok := is.Sets[name].Elements[key]; !ok && len(is.Chains) > 0 {
				return true
			}
		}
	}
	return false
}

// end deletes the tracked connections that are not allowed any more. A failure is no
// reason to write the rules again.
func (c *Controller) end(m model) {
	d, ok := c.ended[m.family]
	if !ok {
		d = disallowed{model: m, answers: map[tuple]flow{}}
	}
	if c.delete(d) {
		c.ended[m.family], c.pause = d, lookMin
		c.look = time.After(c.pause)
	}
}

// endAgain looks whether what was ended has come back. Of a protocol that says nothing of
// beginnings, an answer that was under way begins a connection of its own, from the end that
// may talk, and what the other end goes on to send would pass as its answers.
func (c *Controller) endAgain() {
	for _, d := range c.ended {
		c.delete(d)
	}
	if c.look, c.pause = nil, 2*c.pause; c.pause > lookMax {
		clear(c.ended)
		return
	}
	c.look = time.After(c.pause)
}

// delete tells whether it is worth another look.
func (c *Controller) delete(d disallowed) bool {
	var n uint
	var err error
	if d.machine, err = overlay.LocalAddrs(); err == nil {
		n, err = conntrack.Delete(d.family, d)
	}
	switch {
	case errors.Is(err, conntrack.ErrUnavailable):
		if !c.noConntrackSaid {
			c.cfg.Log.Warn("connections that are not allowed any more cannot be ended", "error", err)
			c.noConntrackSaid = true
		}
		return false
	case err != nil:
		c.cfg.Log.Warn("connections that are not allowed any more could not be ended", "error", err)
		return true
	case n > 0:
		c.cfg.Log.Info("ended connections that are not allowed any more", "connections", n)
	}
	return n > 0
}
