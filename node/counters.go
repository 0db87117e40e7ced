package node

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"syscall"
	"time"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/usage"
	"github.com/rundigitalplatform/rookery/runtime"
)

// sample reads the counters of this machine and of every pod that runs on it. A pod
// whose counters cannot be read is left out.
func (a *Agent) sample(ctx context.Context) (*usage.Sample, error) {
	node, err := usage.Machine("/proc")
	if err != nil {
		return nil, err
	}
	s := &usage.Sample{Node: node}
	if s.Network, err = usage.Network("/proc", "self"); err != nil {
		return nil, err
	}
	for _, w := range a.allWorkers() {
		pod, err := w.counters(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, runtime.ErrNotFound):
		case err != nil:
			a.log.Warn("read usage of pod", "pod", w.name(), "error", err)
		case len(pod.Containers) > 0:
			s.Pods = append(s.Pods, pod)
		}
	}
	return s, nil
}

// counters are those of the pod's running containers.
func (w *worker) counters(ctx context.Context) (usage.Pod, error) {
	w.mu.Lock()
	pod, sandbox := w.pod, w.sandbox
	w.mu.Unlock()
	out := usage.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Labels: pod.Labels}
	if start := pod.Status.StartTime; start != nil {
		out.Started = start.Time
	}
	if sandbox == nil || !sandbox.Running {
		return out, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	used, err := w.a.cfg.Runtime.Usage(call, *sandbox)
	if err != nil {
		return out, err
	}
	if !pod.Spec.HostNetwork {
		out.Network, err = usage.Network("/proc", strconv.Itoa(sandbox.PID))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.EINVAL) {
			return out, err
		} // else it has just ended
	}
	for _, c := range sandbox.Containers {
		name, _, ours := spec.ContainerIdentity(c)
		if u, ok := used[c.ID]; ok && ours {
			out.Containers = append(out.Containers, usage.Container{Counter: usage.Counter(u), ID: c.ID, Name: name, Started: c.Started})
		}
	}
	return out, nil
}

// files measures the file systems and every pod on them. A pod that cannot be is left out.
func (a *Agent) files(ctx context.Context) (*usage.Files, error) {
	seen := a.pressure.observe()
	fs := func(bytes, inodes eviction.Signal) usage.FS {
		return usage.FS{Available: seen[bytes].Available, Capacity: seen[bytes].Capacity, InodesFree: seen[inodes].Available, Inodes: seen[inodes].Capacity}
	}
	out := &usage.Files{
		At: time.Now(), Pods: map[string]usage.PodFiles{},
		Node:   fs(eviction.NodeFSAvailable, eviction.NodeFSInodesFree),
		Images: fs(eviction.ImageFSAvailable, eviction.ImageFSInodesFree),
	}
	if pids, ok := seen[eviction.PIDAvailable]; ok {
		out.Processes, out.MaxProcesses = pids.Capacity-pids.Available, pids.Capacity
	}
	for _, w := range a.allWorkers() {
		pod, active := w.active()
		if !active {
			continue
		}
		d, err := w.disk(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			a.log.Warn("measure pod", "pod", w.name(), "error", err)
			continue
		}
		files := usage.PodFiles{Containers: map[string]usage.ContainerFiles{}, Volumes: map[string]runtime.Space{}, Other: d.volumes.Other}
		for name, u := range d.containers {
			files.Containers[name] = usage.ContainerFiles{Layer: u.Layer, Logs: u.Logs}
		}
		for name, u := range d.volumes.EmptyDirs {
			files.Volumes[name] = u
		}
		out.Pods[string(pod.UID)] = files
	}
	return out, nil
}
