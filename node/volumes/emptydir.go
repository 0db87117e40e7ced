package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// emptyDir makes a volume of the pod's own; allocatable is the node's memory for pods, in bytes.
func (m *Manager) emptyDir(pod *v1.Pod, v *v1.Volume, allocatable int64) error {
	dir := m.volumeDir(pod.UID, v.Name)
	_, err := os.Stat(dir)
	fresh := os.IsNotExist(err)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	switch v.EmptyDir.Medium {
	case v1.StorageMediumDefault:
	case v1.StorageMediumMemory:
		mounted, err := isMountPoint(dir)
		if err != nil {
			return err
		}
		if !mounted {
			// After a reboot the directory is there and the memory is not.
			fresh = true
			options := "mode=0777"
			if size := memorySize(pod, v.EmptyDir, allocatable); size > 0 {
				options += fmt.Sprintf(",size=%d", size)
			}
			if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
				return fmt.Errorf("mount tmpfs: %w", err)
			}
		}
	default:
		return fmt.Errorf("emptyDir medium %q is not supported; use Memory or leave it out", v.EmptyDir.Medium)
	}
	if !fresh {
		return nil // its owner and mode may have been changed by the pod
	}
	if err := os.Chmod(dir, 0o777); err != nil { // past the umask
		return fmt.Errorf("chmod: %w", err)
	}
	if gid := fsGroup(pod); gid != nil {
		if err := os.Chown(dir, -1, int(*gid)); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
		if err := os.Chmod(dir, os.ModeSetgid|0o777); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return nil
}

// memorySize is how much fits into a volume in memory, as kubelet counts: no more than all pods
// may have, than the pod may have if that is limited, and than the volume itself. 0: nothing
// limits it, and the kernel takes half of the memory.
func memorySize(pod *v1.Pod, v *v1.EmptyDirVolumeSource, allocatable int64) int64 {
	size := max(allocatable, 0)
	bound := func(limit int64) {
		if limit > 0 && (size == 0 || limit < size) {
			size = limit
		}
	}
	if memoryLimited(pod) {
		limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
		bound(limits.Memory().Value())
	}
	if v.SizeLimit != nil {
		bound(v.SizeLimit.Value())
	}
	return size
}

// memoryLimited: the pod has a limit of its own, or each of its containers has one.
func memoryLimited(pod *v1.Pod) bool {
	if whole := pod.Spec.Resources; whole != nil && !whole.Limits.Memory().IsZero() {
		return true
	}
	return !slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c v1.Container) bool {
		return c.Resources.Limits.Memory().IsZero()
	})
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func isMountPoint(dir string) (bool, error) {
	own, err := os.Stat(dir)
	if err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	parent, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	return own.Sys().(*syscall.Stat_t).Dev != parent.Sys().(*syscall.Stat_t).Dev, nil
}
