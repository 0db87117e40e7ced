// Package devices gives the devices of a machine that its configuration names, such as
// serial ports, to one container each. It decides and remembers, and looks whether a device
// is there; package node keeps what was decided on disk, and hands it to the runtime.
package devices

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// Table is of the devices and of who has them. Its methods may be called concurrently.
type Table struct {
	configured map[v1.ResourceName][]string

	mu    sync.Mutex
	owner map[string]types.UID // by path
}

// New returns a table of devices by the resource that they are asked for by: paths of device
// files, or of directories whose device files go together, such as /dev/dri.
func New(configured map[v1.ResourceName][]string) (*Table, error) {
	seen := map[string]v1.ResourceName{}
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		if err := Check(name); err != nil {
			return nil, fmt.Errorf("devices: %w", err)
		}
		for _, path := range configured[name] {
			if !filepath.IsAbs(path) || path != filepath.Clean(path) || !strings.HasPrefix(path, "/dev/") {
				return nil, fmt.Errorf("devices %s: %q is not the path of a device such as /dev/ttyUSB0", name, path)
			}
			if other, twice := seen[path]; twice {
				return nil, fmt.Errorf("devices %s: %s is also one of %s: a device is given to one container only", name, path, other)
			}
			seen[path] = name
		}
	}
	return &Table{configured: configured, owner: map[string]types.UID{}}, nil
}

// Check refuses a name that Kubernetes does not take for an extended resource.
func Check(name v1.ResourceName) error {
	if errs := validation.IsQualifiedName(string(name)); len(errs) > 0 || !v1helper.IsExtendedResourceName(name) {
		return fmt.Errorf("%q is not the name of a resource such as example.com/serial", name)
	}
	return nil
}

// Present counts the devices that are there now, by resource; 0 for a resource of which
// none is.
func (t *Table) Present() map[v1.ResourceName]int64 {
	out := make(map[v1.ResourceName]int64, len(t.configured))
	for name, paths := range t.configured {
		out[name] = 0
		for _, path := range paths {
			if there(path) {
				out[name]++
			}
		}
	}
	return out
}

func there(path string) bool {
	info, err := os.Stat(path)
	return err == nil && (info.IsDir() || info.Mode()&fs.ModeDevice != 0)
}

// Allocate gives a pod the devices that its containers ask for, all or none of them, and
// returns them by container. What init containers had, other than sidecars, goes on to the
// containers after them. The error is in kubelet's words.
func (t *Table) Allocate(pod *v1.Pod) (map[string][]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string][]string{}
	taken := map[string]bool{}
	var idle []string // of init containers that have ended by then
	give := func(c *v1.Container, passesOn bool) error {
		var had []string
		for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
			paths, ours := t.configured[name]
			limit := c.Resources.Limits[name]
			needed := int(limit.Value())
			if !ours || needed == 0 {
				continue
			}
			var free []string
			for _, path := range paths {
				if slices.Contains(idle, path) || there(path) && t.owner[path] == "" && !taken[path] {
					free = append(free, path)
				}
			}
			if len(free) < needed {
				return fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, needed, len(free))
			}
			// Those that an init container leaves first.
			slices.SortStableFunc(free, func(a, b string) int { return index(!slices.Contains(idle, a)) - index(!slices.Contains(idle, b)) })
			for _, path := range free[:needed] {
				taken[path] = true
				idle = slices.DeleteFunc(idle, func(have string) bool { return have == path })
				had = append(had, path)
			}
		}
		if len(had) > 0 {
			out[c.Name] = had
		}
		if passesOn {
			idle = append(idle, had...)
		}
		return nil
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if err := give(c, c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways); err != nil {
			return nil, err
		}
	}
	for i := range pod.Spec.Containers {
		if err := give(&pod.Spec.Containers[i], false); err != nil {
			return nil, err
		}
	}
	for path := range taken {
		t.owner[path] = pod.UID
	}
	return out, nil
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Restore notes what a pod was given before the daemon was started.
func (t *Table) Restore(uid types.UID, given map[string][]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, paths := range given {
		for _, path := range paths {
			t.owner[path] = uid
		}
	}
}

// Release frees what a pod has. Idempotent.
func (t *Table) Release(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.owner, func(_ string, have types.UID) bool { return have == uid })
}
