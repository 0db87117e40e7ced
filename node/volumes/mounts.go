package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Mounts resolves a container's volume mounts, and adds /etc/hosts, /etc/hostname,
// /etc/resolv.conf and the file for its termination message unless the container
// mounts something there itself. env serves subPathExpr.
func (m *Manager) Mounts(pod *v1.Pod, c *v1.Container, attempt int, env []runtime.EnvVar) ([]runtime.Mount, error) {
	var out []runtime.Mount
	taken := map[string]bool{}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		mount, err := m.mount(pod, vm, env)
		if err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w", vm.Name, vm.MountPath, err)
		}
		taken[filepath.Clean(vm.MountPath)] = true
		out = append(out, mount)
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		target, source := "/etc/"+name, m.etcFile(pod.UID, name)
		if _, err := os.Stat(source); err == nil && !taken[target] {
			out = append(out, runtime.Mount{Source: source, Target: target})
		}
	}
	if path := c.TerminationMessagePath; path != "" && !taken[filepath.Clean(path)] {
		source, err := m.terminationFile(pod.UID, c.Name, attempt)
		if err != nil {
			return nil, err
		}
		out = append(out, runtime.Mount{Source: source, Target: path})
	}
	return out, nil
}

func (m *Manager) mount(pod *v1.Pod, vm *v1.VolumeMount, env []runtime.EnvVar) (runtime.Mount, error) {
	if vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled {
		return runtime.Mount{}, fmt.Errorf("recursiveReadOnly: Enabled is not supported; use IfPossible")
	}
	v := findVolume(pod, vm.Name)
	if v == nil {
		return runtime.Mount{}, fmt.Errorf("the pod has no such volume")
	}
	out := runtime.Mount{Source: m.volumeDir(pod.UID, v.Name), Target: vm.MountPath, ReadOnly: vm.ReadOnly}
	switch {
	case v.HostPath != nil:
		out.Source = v.HostPath.Path
	case v.EmptyDir == nil:
		out.ReadOnly = true // what is projected is not the pod's to write, as in kubelet
	}
	if p := vm.MountPropagation; p != nil {
		switch *p {
		case v1.MountPropagationHostToContainer:
			out.Propagation = "rslave"
		case v1.MountPropagationBidirectional:
			out.Propagation = "rshared"
		}
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var err error
		if sub, err = spec.ExpandSubPath(vm.SubPathExpr, env); err != nil {
			return runtime.Mount{}, err
		}
	}
	if sub != "" {
		var err error
		if out.Source, err = subPath(out.Source, sub); err != nil {
			return runtime.Mount{}, err
		}
	}
	return out, nil
}

// subPath resolves a path inside the volume, creating a directory where nothing
// is. It never leads out of the volume, by links neither.
func subPath(volume, sub string) (string, error) {
	if filepath.IsAbs(sub) || !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q must be relative and must not contain '..'", sub)
	}
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", fmt.Errorf("open volume: %w", err)
	}
	defer root.Close()
	if _, err := root.Stat(sub); errors.Is(err, os.ErrNotExist) {
		if err := root.MkdirAll(sub, 0o750); err != nil {
			return "", fmt.Errorf("create subPath: %w", err)
		}
	} else if err != nil {
		return "", fmt.Errorf("resolve subPath: %w", err)
	}
	base, err := filepath.EvalSymlinks(volume)
	if err != nil {
		return "", fmt.Errorf("resolve volume: %w", err)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(volume, sub))
	if err != nil {
		return "", fmt.Errorf("resolve subPath: %w", err)
	}
	if base != "/" && path != base && !strings.HasPrefix(path, base+"/") {
		return "", fmt.Errorf("subPath %q leads out of the volume", sub)
	}
	return path, nil
}

func findVolume(pod *v1.Pod, name string) *v1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}
