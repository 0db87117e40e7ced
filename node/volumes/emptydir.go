package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
)

func (m *Manager) emptyDir(pod *v1.Pod, v *v1.Volume) error {
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
			if limit := v.EmptyDir.SizeLimit; limit != nil && limit.Value() > 0 {
				options += fmt.Sprintf(",size=%d", limit.Value())
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
