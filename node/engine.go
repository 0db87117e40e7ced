package node

import (
	"context"
	"errors"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

func everything() labels.Selector { return labels.Everything() }

// watchRuntime follows the engine's events until ctx ends; while there is no
// stream it tries again, and the Node says that the engine is not there.
func (a *Agent) watchRuntime(ctx context.Context) {
	a.spawn(func() { a.resyncLoop(ctx) })
	a.spawn(func() { a.pingLoop(ctx) })
	backoff := time.Second
	for ctx.Err() == nil {
		err := a.cfg.Runtime.Events(ctx, func() {
			backoff = time.Second
			a.node.engineUp()
			a.spawn(func() { a.resync(ctx, true) })
		}, a.engineEvent)
		if ctx.Err() != nil {
			return
		}
		a.log.Warn("events of the container engine ended", "error", err, "retry", backoff)
		a.node.engineDown(err)
		wait(ctx, backoff)
		backoff = min(2*backoff, 10*time.Second) // Podman may be restarted at any time; do not miss it for long
	}
}

// An engine that hangs keeps its event stream open and says nothing: only a question tells.
const (
	pingEvery = 10 * time.Second
	pingTime  = 20 * time.Second // a busy board takes seconds to answer anything
)

// pingLoop notices an engine that hangs, and that it goes on.
func (a *Agent) pingLoop(ctx context.Context) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for hangs := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := a.ping(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !hangs && !errors.Is(err, runtime.ErrUnavailable): // one that is not there is seen by its events
			hangs = true
			a.log.Warn("the container engine hangs", "error", err)
			a.node.engineDown(err)
		case err == nil && (hangs || errors.Is(a.Engine(), context.DeadlineExceeded)): // or another question was not answered in time
			hangs = false
			a.log.Info("the container engine goes on")
			a.node.engineUp()
			a.resync(ctx, true)
		}
	}
}

func (a *Agent) ping(ctx context.Context) error { return ping(ctx, a.cfg.Runtime) }

func ping(ctx context.Context, engine runtime.Runtime) error {
	call, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	return engine.Ping(call)
}

func (a *Agent) engineEvent(e runtime.Event) {
	id, ok := spec.ParseSandboxName(e.Sandbox)
	if !ok {
		return
	}
	if w := a.worker(id.UID); w != nil {
		w.touch(e)
	}
}

func (a *Agent) resyncLoop(ctx context.Context) {
	ticker := time.NewTicker(a.cfg.Resync)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.resync(ctx, false)
		}
	}
}

// listTime bounds the list of all sandboxes, which takes well under a second on most machines
// and a few on a board under load. One that hangs holds it up; then each pod is asked for alone.
const listTime = 20 * time.Second

// resync compares all that runs with what the workers believe, adopts and cleans up. renewed:
// news of the engine may have been missed. One runs at a time.
func (a *Agent) resync(ctx context.Context, renewed bool) {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	if err := a.mend(ctx); err != nil { // no pod starts before that
		a.unanswered(ctx, "mend the engine's storage", err)
		return
	}
	if renewed {
		a.forgetLate()
	}
	list, err := a.list(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		down := a.ping(ctx)
		if down == nil {
			a.node.engineUp()
			a.resyncApart(err, renewed)
			return
		}
		err = down // whatever hung before, this has another cure
	}
	if err != nil {
		a.unanswered(ctx, "list sandboxes", err)
		return
	}
	a.node.engineUp()
	newest, old := newestOf(list)
	for _, w := range a.allWorkers() {
		w.listed(newest[w.uid])
	}
	a.mu.Lock()
	a.listed, a.apart = true, false
	a.mu.Unlock()
	for _, w := range a.allWorkers() {
		w.kickIfNew()
	}
	for uid, s := range newest {
		if a.worker(uid) == nil {
			old = append(old, s)
		}
	}
	for _, s := range old {
		a.removeOrphan(ctx, s)
	}
	a.cleanDirs(newest)
}

// unanswered tells that the engine did not answer, unless that is because ctx ended.
func (a *Agent) unanswered(ctx context.Context, question string, err error) {
	if ctx.Err() == nil {
		a.log.Warn("the container engine did not answer", "question", question, "error", err)
		a.node.engineDown(err)
	}
}

// list is not made while a pod is known that holds it up, nor again soon where none is: a
// call that Podman was left with keeps a thread of it until then.
func (a *Agent) list(ctx context.Context) ([]runtime.Sandbox, error) {
	for _, err := range a.Hanging() {
		return nil, err
	}
	a.mu.Lock()
	late, again := a.late, a.again
	a.mu.Unlock()
	if late != nil && time.Now().Before(again) {
		return nil, late
	}
	call, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	list, err := a.cfg.Runtime.List(call, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		a.mu.Lock()
		a.late, a.again = err, time.Now().Add(askAgain)
		a.mu.Unlock()
	}
	return list, err
}

// forgetLate has the next list made at once, for what held up the last one has changed or is
// known by now. It may be called with a worker's mu.
func (a *Agent) forgetLate() {
	a.mu.Lock()
	a.late = nil
	a.mu.Unlock()
}

// resyncApart has each pod ask for its own sandbox, because they cannot be listed together.
// Those that are known follow the events; they are looked at when some may have been missed,
// and every few minutes. Sandboxes without a pod are found when they can be listed.
func (a *Agent) resyncApart(why error, renewed bool) {
	a.mu.Lock()
	news := !a.apart
	all := news || renewed || time.Now().After(a.lookAgain)
	a.apart = true
	if all {
		a.lookAgain = time.Now().Add(askAgain)
	}
	a.mu.Unlock()
	if news {
		a.log.Warn("a sandbox hangs, so that they cannot be listed; each pod is looked at alone", "error", why)
	}
	for _, w := range a.allWorkers() {
		w.lookAlone(all)
	}
}

// Hanging are the pods, by namespace and name, for which the engine did not answer in time
// when it was last asked, with what it was asked.
func (a *Agent) Hanging() map[string]error {
	var out map[string]error
	for _, w := range a.allWorkers() {
		w.mu.Lock()
		err := w.late
		w.mu.Unlock()
		if err != nil {
			if out == nil {
				out = map[string]error{}
			}
			out[w.name()] = err
		}
	}
	return out
}

// newestOf is the last sandbox of each pod, and those that it replaces.
func newestOf(list []runtime.Sandbox) (newest map[types.UID]*runtime.Sandbox, old []*runtime.Sandbox) {
	newest = map[types.UID]*runtime.Sandbox{}
	for i := range list {
		s := &list[i]
		id, ok := spec.ParseSandboxName(s.Name)
		if !ok {
			continue
		}
		if have := newest[id.UID]; have == nil {
			newest[id.UID] = s
		} else if other, _ := spec.ParseSandboxName(have.Name); other.Attempt < id.Attempt {
			newest[id.UID], old = s, append(old, have)
		} else {
			old = append(old, s)
		}
	}
	return newest, old
}

// removeOrphan removes a sandbox whose pod was deleted while the daemon did not
// run, or that was replaced. The list of pods has been synced when this is called.
func (a *Agent) removeOrphan(ctx context.Context, s *runtime.Sandbox) {
	id, _ := spec.ParseSandboxName(s.Name)
	a.mu.Lock()
	known := a.orphans[s.ID]
	a.orphans[s.ID] = true
	a.mu.Unlock()
	if known {
		return
	}
	a.spawn(func() {
		defer func() {
			a.mu.Lock()
			delete(a.orphans, s.ID)
			a.mu.Unlock()
		}()
		a.log.Info("remove sandbox without pod", "sandbox", s.Name)
		for _, c := range s.Containers {
			if c.State == runtime.Running {
				call, cancel := context.WithTimeout(ctx, callTimeout)
				if err := a.cfg.Runtime.StopContainer(call, c.ID, orphanGrace); err != nil {
					a.log.Warn("stop container", "container", c.Name, "error", err)
				}
				cancel()
			}
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := a.cfg.Runtime.RemoveSandbox(call, s.ID); err != nil {
			a.log.Warn("remove sandbox", "sandbox", s.Name, "error", err)
			return // the next resync tries again
		}
		if a.worker(id.UID) != nil {
			return // only an older sandbox of a living pod
		}
		if err := a.cfg.Network.Detach(call, string(id.UID)); err != nil {
			a.log.Warn("detach", "pod", id.UID, "error", err)
		}
		if err := a.volumes.Cleanup(id.UID); err != nil {
			a.log.Warn("clean up volumes", "pod", id.UID, "error", err)
		}
	})
}

// orphanGrace is what containers without a pod get between signal and kill: their
// own grace went with the pod. As in kubelet.
const orphanGrace = 2 * time.Second

// cleanDirs removes files of pods that are gone in every other respect.
func (a *Agent) cleanDirs(running map[types.UID]*runtime.Sandbox) {
	uids, err := a.volumes.Pods()
	if err != nil {
		a.log.Warn("list pod directories", "error", err)
		return
	}
	for _, uid := range uids {
		if running[uid] != nil || a.worker(uid) != nil {
			continue
		}
		if err := a.volumes.Cleanup(uid); err != nil {
			a.log.Warn("clean up volumes", "pod", uid, "error", err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// hostFile reads a file of the host that may not be there.
func hostFile(paths ...string) []byte {
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil {
			return data
		}
	}
	return nil
}
