package node

import (
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/volumes"
	"github.com/rundigitalplatform/rookery/runtime"
)

// diskUsage is what a pod has on disk.
type diskUsage struct {
	volumes    volumes.Disk
	containers map[string]runtime.DiskUsage // the newest of each, by name
	all        runtime.DiskUsage            // older ones, too
}

// disk measures the pod's files.
func (w *worker) disk(ctx context.Context) (diskUsage, error) {
	w.mu.Lock()
	pod, sandbox := w.pod, w.sandbox
	w.mu.Unlock()
	out := diskUsage{containers: map[string]runtime.DiskUsage{}}
	var err error
	if out.volumes, err = w.a.volumes.Disk(ctx, pod); err != nil {
		return out, err
	}
	if sandbox == nil {
		return out, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	byID, err := w.a.cfg.Runtime.Disk(call, *sandbox)
	if err != nil {
		return out, err
	}
	for _, u := range byID {
		out.all.Layer, out.all.Logs = out.all.Layer.Add(u.Layer), out.all.Logs.Add(u.Logs)
	}
	for _, c := range spec.Containers(pod) {
		if newest := plan.Newest(sandbox, c.Name); newest != nil {
			if u, ok := byID[newest.ID]; ok {
				out.containers[c.Name] = u
			}
		}
	}
	return out, nil
}

// usage is what eviction has to know of the pod; onDisk asks for that too, which is not cheap.
func (w *worker) usage(ctx context.Context, onDisk bool) (eviction.Usage, error) {
	var out eviction.Usage
	counted, err := w.counters(ctx)
	if err != nil {
		return out, err
	}
	for _, c := range counted.Containers {
		out.Memory += c.Memory
		out.Processes += c.Processes
		out.Containers = append(out.Containers, eviction.ContainerUsage{Name: c.Name, Memory: c.Memory})
	}
	if !onDisk {
		return out, nil
	}
	d, err := w.disk(ctx)
	if err != nil {
		return out, err
	}
	out.Volumes = d.volumes.All()
	out.Layers = d.all.Layer.Add(d.all.Logs)
	for i := range out.Containers {
		u := d.containers[out.Containers[i].Name]
		out.Containers[i].Disk = u.Layer.Bytes + u.Logs.Bytes
	}
	return out, nil
}

// Files are measured for limits that only that can hold a pod to, and not while no pod has
// any: at most every 10 s, and so that it takes no more than a twentieth of the time.
const (
	measureAgain = 10 * time.Second
	measureShare = 20
	measureLate  = 5 * time.Minute // but not later than that
)

// holdToLimits evicts pods that have more on disk than they may.
func (a *Agent) holdToLimits(ctx context.Context) {
	pause := measureAgain
	for ctx.Err() == nil {
		wait(ctx, pause)
		began := time.Now()
		for _, w := range a.allWorkers() {
			pod, active := w.active()
			if !active || !eviction.Limited(pod) {
				continue
			}
			if err := w.holdToLimits(ctx, pod); err != nil && ctx.Err() == nil && !errors.Is(err, runtime.ErrUnavailable) {
				a.log.Warn("measure pod", "pod", w.name(), "error", err)
			}
		}
		pause = min(max(measureAgain, measureShare*time.Since(began)), measureLate)
	}
}

func (w *worker) holdToLimits(ctx context.Context, pod *v1.Pod) error {
	d, err := w.disk(ctx)
	if err != nil {
		return err
	}
	volumes, containers := map[string]int64{}, map[string]int64{}
	for name, u := range d.volumes.EmptyDirs {
		volumes[name] = u.Bytes
	}
	for name, u := range d.containers {
		containers[name] = u.Layer.Bytes + u.Logs.Bytes
	}
	if message := eviction.Exceeded(pod, volumes, containers, d.volumes.Other.Bytes); message != "" {
		if w.evict(message, hardGrace, nil, nil) {
			w.a.log.Warn("pod is evicted", "pod", w.name(), "reason", message)
		}
	}
	return nil
}
