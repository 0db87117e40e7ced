package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/du"
)

// Disk is what a pod's directory takes.
type Disk struct {
	EmptyDirs map[string]runtime.Space // those on disk, by name
	Other     runtime.Space            // all else, without what is mounted
}

// All of it.
func (d Disk) All() runtime.Space {
	out := d.Other
	for _, u := range d.EmptyDirs {
		out = out.Add(u)
	}
	return out
}

// Disk measures the pod's directory. It looks at each file in it.
func (m *Manager) Disk(ctx context.Context, pod *v1.Pod) (Disk, error) {
	out := Disk{EmptyDirs: map[string]runtime.Space{}}
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault {
			u, err := du.Of(ctx, m.volumeDir(pod.UID, v.Name))
			if err != nil {
				return out, err
			}
			out.EmptyDirs[v.Name] = u
		}
	}
	for _, dir := range []string{m.PodDir(pod.UID), filepath.Join(m.PodDir(pod.UID), "volumes")} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("measure pod directory: %w", err)
		}
		for _, e := range entries {
			if dir == m.PodDir(pod.UID) && (e.Name() == "volumes" || e.Name() == "mounts") {
				continue // the one is looked into itself, and what is staged in the other is counted where it is from
			}
			_, counted := out.EmptyDirs[e.Name()]
			mounted := false
			if at := filepath.Join(dir, e.Name()); e.IsDir() {
				if mounted, err = isMountPoint(at); errors.Is(err, os.ErrNotExist) {
					continue
				} else if err != nil {
					return out, fmt.Errorf("measure pod directory: %w", err)
				}
			}
			if counted && dir != m.PodDir(pod.UID) || mounted {
				continue
			}
			u, err := du.Of(ctx, filepath.Join(dir, e.Name()))
			if err != nil {
				return out, err
			}
			out.Other = out.Other.Add(u)
		}
	}
	return out, nil
}
