// Package node is the agent of a peer: it does a kubelet's work for the pods bound
// to it. It keeps the peer's Node object, turns pods into sandboxes and containers
// through package runtime, mounts their volumes, probes them, reports their status
// and serves logs, exec, attach and port forwarding.
//
// It talks to the API only through client-go. Packets are left to the Network that
// it is given, liveness of peers to gossip: no heartbeat is ever written. Decisions
// are in node/plan, pure; here they are carried out. cmd composes it.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodelisters "k8s.io/client-go/listers/node/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/node/images"
	"github.com/rundigitalplatform/rookery/node/probe"
	"github.com/rundigitalplatform/rookery/node/usage"
	"github.com/rundigitalplatform/rookery/node/volumes"
)

// Agent runs the pods of one peer.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	pods     corelisters.PodLister
	services corelisters.ServiceLister
	classes  nodelisters.RuntimeClassLister
	synced   []cache.InformerSynced
	podsInf  cache.SharedIndexInformer
	volumes  *volumes.Manager
	objects  *objects
	followed *followed
	prober   *probe.Prober
	node     *registrar
	writer   *writer
	events   record.EventRecorder
	caster   record.EventBroadcaster
	images   *images.Manager
	usage    *usage.Sampler
	ledger   *ledger
	pressure *pressure
	// reclaim removes from the disk what nobody needs, and returns how many bytes that were.
	reclaim func(ctx context.Context) (freed int64, err error)

	recursiveReadOnly bool // the kernel can
	uptime            func() (boot string, since time.Duration)
	watch             func(ctx context.Context) // the clock

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	closed  bool
	wg      sync.WaitGroup
	workers map[types.UID]*worker
	listed  bool // the engine told once what runs
	apart   bool // it cannot tell of all at once, for a sandbox hangs: each pod asks for its own
	// While that is so:
	lookAgain time.Time // when the pods that are known do
	late      error     // how the last list of all took too long, where no pod is known that held it up; else nil
	again     time.Time // when the next one is made, if late
	orphans   map[string]bool
	damages   []damage // what was broken in the engine's storage

	syncing sync.Mutex // held by resync
	mending sync.Mutex // held while that is looked at
	mended  bool       // under mending
}

// New prepares an agent and registers with the informers. It has no other effect.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	cfg.Host.PodCIDRs = cfg.PodCIDRs
	core := cfg.Informers.Core().V1()
	a := &Agent{
		cfg:      cfg,
		log:      cfg.Logger.With("room", "node"),
		pods:     core.Pods().Lister(),
		services: core.Services().Lister(),
		podsInf:  core.Pods().Informer(),
		prober:   probe.NewProber(),
		workers:  map[types.UID]*worker{},
		orphans:  map[string]bool{},
		caster:   record.NewBroadcaster(),
		uptime:   uptime,
	}
	a.watch = a.watchClock
	a.synced = []cache.InformerSynced{a.podsInf.HasSynced, core.Services().Informer().HasSynced}
	a.events = a.caster.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: cfg.Name})
	a.volumes = volumes.New(cfg.Dir, tokens{cfg.Client})
	a.objects = newObjects(cfg.Client, a.volumes.PodDir)
	a.recursiveReadOnly = volumes.RecursiveReadOnly()
	a.followed = newFollowed(cfg.Client, a.objects.news, a.filesChanged)
	a.objects.read = a.followed.read
	table, err := devices.New(cfg.Resources.Devices)
	if err != nil {
		return nil, err
	}
	thresholds, err := cfg.Resources.Eviction.Thresholds()
	if err != nil {
		return nil, err
	}
	a.ledger, a.pressure = newLedger(table), newPressure(a, thresholds)
	a.node = newRegistrar(cfg, core.Nodes(), a.log)
	if a.images, err = a.newImages(); err != nil {
		return nil, err
	}
	a.node.images = a.images.List
	a.classes = cfg.Informers.Node().V1().RuntimeClasses().Lister()
	a.synced = append(a.synced, cfg.Informers.Node().V1().RuntimeClasses().Informer().HasSynced)
	a.node.devices, a.node.thresholds, a.node.pressure = table, thresholds, a.pressure.Conditions
	a.reclaim = a.Reclaim
	a.writer = newWriter(cfg.Client, a.pods, a.log)
	a.usage = usage.NewSampler(a.sample, a.files)
	return a, nil
}

// Engine is nil while the container engine answers, else why it does not.
func (a *Agent) Engine() error {
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	return a.node.engine
}

// Run runs pods until ctx ends. Containers live on after that; the next Run adopts
// them. It returns when all that it started is gone.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.ctx = ctx
	a.mu.Unlock()
	sink := a.startEvents(ctx)
	defer sink()
	defer a.close()
	defer cancel()

	a.spawn(func() { a.writer.run(ctx) })
	a.spawn(func() { a.node.run(ctx, a.cfg.Runtime) })
	if !cache.WaitForCacheSync(ctx.Done(), a.synced...) {
		return nil
	}
	handle, err := a.podsInf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { a.podChanged(obj.(*v1.Pod)) },
		UpdateFunc: func(_, obj any) { a.podChanged(obj.(*v1.Pod)) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if pod, ok := obj.(*v1.Pod); ok {
				a.podDeleted(pod)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	defer func() {
		if err := a.podsInf.RemoveEventHandler(handle); err != nil {
			a.log.Warn("remove event handler", "error", err)
		}
	}()
	if !cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		return nil
	}
	a.spawn(func() { a.pressure.run(ctx) })
	a.spawn(func() { a.holdToLimits(ctx) })
	a.spawn(func() { a.watch(ctx) })
	a.spawn(func() { a.images.Run(ctx) }) // not before the pods are known, whose images it must keep
	a.watchRuntime(ctx)
	return nil
}

// spawn runs f unless the agent is closing; close waits for it.
func (a *Agent) spawn(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.wg.Go(f)
	return true
}

func (a *Agent) close() {
	a.mu.Lock()
	a.closed = true
	workers := a.workers
	a.workers = map[types.UID]*worker{}
	a.mu.Unlock()
	for _, w := range workers {
		w.close()
	}
	a.wg.Wait()
}

func (a *Agent) worker(uid types.UID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

func (a *Agent) allWorkers() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w)
	}
	return out
}

// isListed: it is known what runs, but for pods that hang.
func (a *Agent) isListed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.listed || a.apart
}

func (a *Agent) podChanged(pod *v1.Pod) {
	if pod.Spec.NodeName != a.cfg.Name {
		return
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	w := a.workers[pod.UID]
	if w == nil {
		w = newWorker(a, a.ctx, pod)
		a.workers[pod.UID] = w
	}
	a.mu.Unlock()
	w.update(pod)
}

func (a *Agent) podDeleted(pod *v1.Pod) {
	if w := a.worker(pod.UID); w != nil {
		w.podGone()
	}
}

// drop forgets a pod of which nothing is left.
func (a *Agent) drop(w *worker) {
	a.mu.Lock()
	if a.workers[w.uid] == w {
		delete(a.workers, w.uid)
	}
	a.mu.Unlock()
	a.writer.forget(w.uid)
	a.ledger.release(w.uid)
	a.unfollow(w.uid)
	w.close()
}

// follow has the pod's files follow the objects that they are made from.
func (a *Agent) follow(pod *v1.Pod) {
	a.mu.Lock()
	ctx := a.ctx
	a.mu.Unlock()
	a.followed.pod(ctx, pod.UID, projected(pod), a.spawn)
}

func (a *Agent) unfollow(uid types.UID) { a.followed.gone(uid) }

func (a *Agent) filesChanged(pods []types.UID) {
	for _, uid := range pods {
		if w := a.worker(uid); w != nil {
			w.refresh()
		}
	}
}

// serviceList is what pods see of Services in their environment.
func (a *Agent) serviceList() []*v1.Service {
	list, err := a.services.List(everything())
	if err != nil {
		a.log.Error("list services", "error", err) // a lister cannot fail but by a programming error
		return nil
	}
	return list
}

// callTimeout bounds a call of the engine that should take well under a second;
// generous, for an SD card under load.
const callTimeout = 2 * time.Minute
