package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	v1 "k8s.io/api/core/v1"
	envutil "k8s.io/kubernetes/pkg/kubelet/util/env"
)

// EnvFile reads one variable from a file that a container has left in a volume, in
// kubelet's format; empty if the file does not name it, or is not there and may be missing.
func (m *Manager) EnvFile(pod *v1.Pod, ref *v1.FileKeySelector) (string, error) {
	v := Find(pod, ref.VolumeName)
	if v == nil || v.EmptyDir == nil {
		return "", fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	root, err := os.OpenRoot(m.volumeDir(pod.UID, v.Name))
	if err != nil {
		return "", fmt.Errorf("open volume %q: %w", v.Name, err)
	}
	defer root.Close()
	// It is the pod's file: a link does not lead out of the volume, and a pipe is not waited for.
	f, err := root.OpenFile(ref.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) && ref.Optional != nil && *ref.Optional {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("couldn't parse env file: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(fmt.Errorf("couldn't parse env file: %s is not a file", ref.Path), err)
	}
	value, err := envutil.ParseEnv(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), ref.Key)
	if err != nil {
		return "", fmt.Errorf("couldn't parse env file %s: %w", ref.Path, err)
	}
	return value, nil
}
