package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	nodeutil "k8s.io/component-helpers/node/util"

	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/runtime"
)

// registrar keeps this peer's Node object right. It writes when something changed
// and never to say that it is alive: that is gossip's. A Node that others declared
// not ready while its peer is well is set right again.
type registrar struct {
	cfg  Config
	inf  coreinformers.NodeInformer
	log  *slog.Logger
	wake chan struct{}

	mu       sync.Mutex
	engine   error // why the engine is not there; nil: it is
	info     runtime.Info
	images   func() []runtime.Image // that are here, the largest first; set before run
	asked    bool                   // the engine answered or failed once
	again    time.Time              // when it is asked again what it is; zero: not
	stopping bool                   // the machine is about to stop
	total    v1.ResourceList

	devices    *devices.Table
	thresholds []eviction.Threshold
	pressure   func() []v1.NodeConditionType
}

// store is where the engine keeps images and containers; empty: not known, or not here.
func (r *registrar) store() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.info.StoreDir
}

func newRegistrar(cfg Config, inf coreinformers.NodeInformer, log *slog.Logger) *registrar {
	inf.Informer() // asks the factory for it
	return &registrar{cfg: cfg, inf: inf, log: log, wake: make(chan struct{}, 1), total: capacity(cfg)}
}

// checkNode is how often facts about the machine are looked at, such as devices.
const checkNode = 10 * time.Second

func (r *registrar) run(ctx context.Context, engine runtime.Runtime) {
	handle, err := r.inf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    r.changed,
		UpdateFunc: func(_, obj any) { r.changed(obj) },
		DeleteFunc: r.changed,
	})
	if err != nil {
		r.log.Error("watch nodes", "error", err)
	} else {
		defer func() {
			if err := r.inf.Informer().RemoveEventHandler(handle); err != nil {
				r.log.Warn("remove event handler", "error", err)
			}
		}()
	}
	cache.WaitForCacheSync(ctx.Done(), r.inf.Informer().HasSynced)
	ticker := time.NewTicker(checkNode)
	defer ticker.Stop()
	backoff := time.Second
	for {
		var retry <-chan time.Time
		if r.unasked() {
			r.ask(ctx, engine)
		}
		if err := r.ensure(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("update node", "node", r.cfg.Name, "error", err, "retry", backoff)
			retry = time.After(backoff)
			backoff = min(2*backoff, 30*time.Second)
		} else {
			backoff = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-r.wake:
		case <-ticker.C:
		}
	}
}

// askAgain is when what one container that hangs may hold up is asked again of the engine: each
// try leaves it with a thread that waits.
const askAgain = 5 * time.Minute

// ask asks the engine what it is. A single container that hangs may keep it from saying so.
func (r *registrar) ask(ctx context.Context, engine runtime.Runtime) {
	call, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	info, err := engine.Info(call)
	again := time.Time{}
	if errors.Is(err, context.DeadlineExceeded) {
		if err = ping(ctx, engine); err == nil {
			again = time.Now().Add(askAgain)
		}
	} else if err == nil {
		r.mu.Lock()
		r.info = info
		r.mu.Unlock()
	}
	r.mu.Lock()
	r.asked, r.engine, r.again = true, err, again
	r.mu.Unlock()
}

// unasked: nothing is known of the engine yet, or it has come back and may be another version.
func (r *registrar) unasked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.asked || !r.again.IsZero() && time.Now().After(r.again)
}

func (r *registrar) changed(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if node, ok := obj.(*v1.Node); ok && node.Name == r.cfg.Name {
		r.kick()
	}
}

func (r *registrar) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// setStopping makes the Node not ready until it is taken back; changed: it was not so before.
func (r *registrar) setStopping(stopping bool) (changed bool) {
	r.mu.Lock()
	changed = r.stopping != stopping
	r.stopping = stopping
	r.mu.Unlock()
	r.kick()
	return changed
}

func (r *registrar) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}

func (r *registrar) engineUp() { r.setEngine(nil) }

func (r *registrar) engineDown(err error) { r.setEngine(err) }

func (r *registrar) setEngine(err error) {
	r.mu.Lock()
	changed := (r.engine == nil) != (err == nil)
	r.engine = err
	if changed && err == nil {
		r.asked = false
	}
	r.mu.Unlock()
	if changed {
		r.kick()
	}
}

// ensure makes the Node what it should be. Nothing is written if it is already.
func (r *registrar) ensure(ctx context.Context) error {
	nodes := r.cfg.Client.CoreV1().Nodes()
	have, err := r.inf.Lister().Get(r.cfg.Name)
	if apierrors.IsNotFound(err) {
		have, err = nodes.Get(ctx, r.cfg.Name, metav1.GetOptions{}) // the cache may be behind
	}
	if apierrors.IsNotFound(err) {
		node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.cfg.Name}}
		r.fill(node)
		have, err = nodes.Create(ctx, node, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	want := have.DeepCopy()
	r.fill(want)
	if !equality.Semantic.DeepEqual(have.ObjectMeta, want.ObjectMeta) || !equality.Semantic.DeepEqual(have.Spec, want.Spec) {
		// Patched, not updated: an older copy would take back taints, which a peer may not.
		if have, err = r.patch(ctx, have, want); err != nil {
			return err
		}
	}
	want = have.DeepCopy()
	r.status(want, time.Now())
	if equality.Semantic.DeepEqual(have.Status, want.Status) {
		return nil
	}
	_, _, err = nodeutil.PatchNodeStatus(r.cfg.Client.CoreV1(), types.NodeName(r.cfg.Name), have, want)
	return err
}

func (r *registrar) patch(ctx context.Context, have, want *v1.Node) (*v1.Node, error) {
	from, err := json.Marshal(have)
	if err != nil {
		return nil, fmt.Errorf("encode node: %w", err)
	}
	to, err := json.Marshal(want)
	if err != nil {
		return nil, fmt.Errorf("encode node: %w", err)
	}
	difference, err := strategicpatch.CreateTwoWayMergePatch(from, to, v1.Node{})
	if err != nil {
		return nil, fmt.Errorf("compare nodes: %w", err)
	}
	return r.cfg.Client.CoreV1().Nodes().Patch(ctx, r.cfg.Name, types.StrategicMergePatchType, difference, metav1.PatchOptions{})
}

// fill sets what is ours of metadata and spec; taints and others' labels stay.
func (r *registrar) fill(node *v1.Node) {
	if node.Labels == nil {
		node.Labels = map[string]string{}
	}
	for k, v := range r.labels() {
		node.Labels[k] = v
	}
	if node.Spec.PodCIDR != "" {
		return // it does not change
	}
	for _, p := range r.cfg.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	if len(r.cfg.PodCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
}

func (r *registrar) labels() map[string]string {
	out := map[string]string{}
	for k, v := range r.cfg.Labels {
		out[k] = v
	}
	out[v1.LabelHostname] = r.cfg.Name
	out[v1.LabelOSStable] = "linux"
	out[v1.LabelArchStable] = arch
	return out
}
