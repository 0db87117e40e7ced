package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// For is what mounts are made for.
type For struct {
	Attempt int
	Env     []runtime.EnvVar // serves subPathExpr
	// Users is a user namespace whose users own the files, as a path; empty: the machine's.
	Users string
	// Images are where the images of image volumes are mounted, by the volume's name.
	Images map[string]string
}

// Mounts resolves a container's volume mounts, and adds /etc/hosts, /etc/hostname,
// /etc/resolv.conf and the file for its termination message unless the container
// mounts something there itself.
func (m *Manager) Mounts(pod *v1.Pod, c *v1.Container, in For) ([]runtime.Mount, error) {
	if err := m.unstage(pod.UID, c.Name); err != nil {
		return nil, err
	}
	var users *os.File
	if in.Users != "" {
		var err error
		if users, err = os.Open(in.Users); err != nil {
			return nil, fmt.Errorf("open the pod's user namespace: %w", err)
		}
		defer users.Close()
	}
	var out []runtime.Mount
	taken := map[string]bool{}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		mount, err := m.mount(pod, vm, in, users, filepath.Join(m.stageDir(pod.UID, c.Name), strconv.Itoa(i)))
		if err != nil {
			if vm.SubPath != "" || vm.SubPathExpr != "" {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
			}
			return nil, fmt.Errorf("mount %s at %s: %w", vm.Name, vm.MountPath, err)
		}
		taken[filepath.Clean(vm.MountPath)] = true
		out = append(out, mount)
	}
	own := len(out)
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		target, source := "/etc/"+name, m.etcFile(pod.UID, name)
		if _, err := os.Stat(source); err == nil && !taken[target] {
			out = append(out, runtime.Mount{Source: source, Target: target})
		}
	}
	if path := c.TerminationMessagePath; path != "" && !taken[filepath.Clean(path)] {
		source, err := m.terminationFile(pod.UID, c.Name, in.Attempt)
		if err != nil {
			return nil, err
		}
		out = append(out, runtime.Mount{Source: source, Target: path})
	}
	for i := own; i < len(out) && users != nil; i++ {
		target := filepath.Join(m.stageDir(pod.UID, c.Name), strconv.Itoa(i))
		if err := m.stageMount(out[i].Source, "", target, false, staged{users: users}); err != nil {
			return nil, fmt.Errorf("mount %s: %w", out[i].Target, err)
		}
		out[i].Source = target
	}
	return out, nil
}

// mount resolves one mount; where it has to be mounted beforehand, that is at target.
func (m *Manager) mount(pod *v1.Pod, vm *v1.VolumeMount, in For, users *os.File, target string) (runtime.Mount, error) {
	v := Find(pod, vm.Name)
	if v == nil {
		return runtime.Mount{}, fmt.Errorf("the pod has no such volume")
	}
	out := runtime.Mount{Source: m.volumeDir(pod.UID, v.Name), Target: vm.MountPath, ReadOnly: vm.ReadOnly}
	switch {
	case v.HostPath != nil:
		out.Source = v.HostPath.Path
	case v.Image != nil:
		if out.Source = in.Images[v.Name]; out.Source == "" {
			return runtime.Mount{}, fmt.Errorf("its image is not mounted")
		}
		out.ReadOnly, out.NoExec = true, true // as in kubelet
		users = nil                           // the engine's file system cannot be mapped; anybody may read it
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
	recursive, err := Recursive(vm, RecursiveReadOnly())
	if err != nil {
		return runtime.Mount{}, err
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		if sub, err = spec.ExpandSubPath(vm.SubPathExpr, in.Env); err != nil {
			return runtime.Mount{}, err
		}
	}
	if sub == "" && !recursive && users == nil {
		return out, nil
	}
	if err := m.stageMount(out.Source, sub, target, v.Image == nil, staged{recursive, out.Propagation, users}); err != nil {
		return runtime.Mount{}, err
	}
	out.Source = target
	return out, nil
}

// stageMount mounts sub, or all, of a volume at target; create: sub, where it is not there.
func (m *Manager) stageMount(volume, sub, target string, create bool, s staged) error {
	var fd int
	var err error
	if sub != "" {
		fd, err = openSub(volume, sub, create)
	} else {
		fd, err = unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return stage(fd, target, s)
}

// Find returns the pod's volume of that name, or nil.
func Find(pod *v1.Pod, name string) *v1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}
