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
			a.spawn(func() { a.resync(ctx) })
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
		call, cancel := context.WithTimeout(ctx, pingTime)
		err := a.cfg.Runtime.Ping(call)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !hangs && !errors.Is(err, runtime.ErrUnavailable): // one that is not there is seen by its events
			hangs = true
			a.log.Warn("the container engine hangs", "error", err)
			a.node.engineDown(err)
		case err == nil && hangs:
			hangs = false
			a.log.Info("the container engine goes on")
			a.node.engineUp()
			a.resync(ctx)
		}
	}
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
			a.resync(ctx)
		}
	}
}

// resync compares all that runs with what the workers believe, adopts and cleans up.
func (a *Agent) resync(ctx context.Context) {
	err := a.mend(ctx)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	var list []runtime.Sandbox
	if err == nil {
		list, err = a.cfg.Runtime.List(call)
	}
	if err != nil {
		if ctx.Err() == nil {
			a.log.Warn("list sandboxes", "error", err)
			a.node.engineDown(err)
		}
		return
	}
	a.node.engineUp()
	newest := map[types.UID]*runtime.Sandbox{}
	var old []*runtime.Sandbox
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
	for _, w := range a.allWorkers() {
		w.listed(newest[w.uid], began)
	}
	a.mu.Lock()
	a.listed = true
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
