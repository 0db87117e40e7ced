package podman

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/runtime"
)

// oomSlack is how long before a container's end the kernel may have said that it ran out
// of memory for the one to be the reason of the other: ends are known to the second, and a
// big process takes a moment to die.
const oomSlack = 10 * time.Second

// oomWatch is told by the kernel when a container runs out of memory: with version 1 of
// control groups only, where conmon often looks after the group is gone. It costs a file
// descriptor and a parked goroutine for as long as the container runs.
type oomWatch struct {
	event *os.File

	mu   sync.Mutex
	last time.Time // zero: never
}

// watchOOM begins a watch of the memory group dir (cgroup-v1/memory.txt, section 9 and 10).
func watchOOM(dir string) (*oomWatch, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	w := &oomWatch{event: os.NewFile(uintptr(fd), "eventfd")}
	control, err := os.Open(dir + "/memory.oom_control")
	if err == nil {
		err = setting{path: dir + "/cgroup.event_control", value: fmt.Sprintf("%d %d", fd, control.Fd())}.write()
		err = errors.Join(err, control.Close()) // the kernel has what it needs of it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch memory: %w", err), w.event.Close())
	}
	go w.follow(dir + "/memory.oom_control")
	return w, nil
}

// follow ends with the group, for which the kernel makes an event too, or by close.
func (w *oomWatch) follow(control string) {
	var count [8]byte
	for {
		if _, err := w.event.Read(count[:]); err != nil {
			return // closed
		}
		_, err := os.Stat(control)
		there, events := err == nil, binary.NativeEndian.Uint64(count[:])
		if there || events > 1 {
			w.mu.Lock()
			w.last = time.Now()
			w.mu.Unlock()
		}
		if !there {
			return
		}
	}
}

func (w *oomWatch) close() {
	_ = w.event.Close() // an eventfd has nothing to lose
}

// killed says whether memory ran out just before the container ended.
func (w *oomWatch) killed(end time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.last.IsZero() && w.last.After(end.Add(-oomSlack))
}

// watch begins to watch a running container of a sandbox whose infra container has that
// pid, unless it is watched. That it cannot be is no fault of the container's.
func (r *Runtime) watch(pid int, id string) {
	groups, err := r.cgroups()
	if err != nil || groups.v2 || pid == 0 {
		return
	}
	r.mu.Lock()
	_, there := r.oom[id]
	r.mu.Unlock()
	if there {
		return
	}
	at, err := groups.ofSandbox(pid)
	if err != nil {
		return
	}
	w, err := watchOOM(groups.of(groups.mounts.memory, at.memory, id))
	if err != nil {
		if !gone(err) { // it has ended already, or has not begun
			r.log.Debug("out of memory will not be seen", "container", id, "error", err)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.oom[id]; there {
		w.close()
		return
	}
	r.oom[id] = w
}

// unwatch forgets the containers that drop tells.
func (r *Runtime) unwatch(drop func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, w := range r.oom {
		if drop(id) {
			w.close()
			delete(r.oom, id)
		}
	}
}

// outOfMemory completes what Podman says about an end: one by SIGKILL just after the
// kernel said that memory is out.
func (r *Runtime) outOfMemory(c *runtime.Container) bool {
	const killed = 128 + int(unix.SIGKILL)
	r.mu.Lock()
	w := r.oom[c.ID]
	r.mu.Unlock()
	return w != nil && c.ExitCode == killed && w.killed(c.Finished)
}
