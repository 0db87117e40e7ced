package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a container shall have of a volume, and not all of it, is mounted here first: by
// then it is the very file or directory that was looked at, whatever the pod does to the
// path meanwhile, and the engine binds that.
func (m *Manager) stageDir(uid types.UID, container string) string {
	return filepath.Join(m.PodDir(uid), "mounts", container)
}

// staged is how a path is mounted there.
type staged struct {
	readOnly    bool // and all that is mounted below
	propagation string
	users       *os.File // user namespace whose users own the files there; nil: the machine's
}

// stage mounts what fd is at target, which it makes.
func stage(fd int, target string, s staged) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := makeTarget(target, stat.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	attr := unix.MountAttr{}
	if s.propagation != "rshared" {
		// What is mounted below comes along; but as a slave, or its end here would be its end there.
		flags |= unix.AT_RECURSIVE
		attr.Propagation = unix.MS_SLAVE
	}
	if s.readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	tree, err := unix.OpenTree(fd, "", flags)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set up mount: %w", err)
	}
	if s.users != nil {
		// What is mounted below is left as it is: file systems such as /proc cannot do this.
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(s.users.Fd())}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("hostUsers: false needs a file system with idmapped mounts (tmpfs has them since Linux 6.3): %w", err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

func makeTarget(target string, dir bool) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return fmt.Errorf("create mount point: %w", err)
	}
	if dir {
		if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create mount point: %w", err)
		}
		return nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create mount point: %w", err)
	}
	return f.Close()
}

// RecursiveReadOnly says whether this kernel can make a mount read-only together with
// all that is mounted below it: Linux 5.12.
func RecursiveReadOnly() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}

// openSub opens a path inside a volume, creating a directory, with the volume's own
// mode, where nothing is if it may. It never leads out of the volume, by links neither, and
// what it returns cannot be exchanged for anything else.
func openSub(volume, sub string, create bool) (fd int, err error) {
	if filepath.IsAbs(sub) || !filepath.IsLocal(sub) {
		return -1, fmt.Errorf("subPath %q must be relative and must not contain '..'", sub)
	}
	root, err := os.OpenRoot(volume)
	if err != nil {
		return -1, fmt.Errorf("open volume: %w", err)
	}
	defer root.Close()
	if _, err := root.Stat(sub); errors.Is(err, fs.ErrNotExist) && create {
		info, err := root.Stat(".")
		if err != nil {
			return -1, fmt.Errorf("stat volume: %w", err)
		}
		mode := info.Mode() & (fs.ModePerm | fs.ModeSetgid)
		if err := root.MkdirAll(sub, mode.Perm()); err != nil {
			return -1, fmt.Errorf("create subPath: %w", err)
		}
		if err := root.Chmod(sub, mode); err != nil { // past the umask
			return -1, fmt.Errorf("chmod subPath: %w", err)
		}
	}
	dir, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open volume: %w", err)
	}
	defer unix.Close(dir)
	fd, err = unix.Openat2(dir, filepath.Clean(sub), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("subpath %q not within volume path", sub)
	}
	if err != nil {
		return -1, fmt.Errorf("resolve subPath %q: %w", sub, err)
	}
	return fd, nil
}

// unstage takes away what was mounted for earlier attempts of a container.
func (m *Manager) unstage(uid types.UID, container string) error {
	dir := m.stageDir(uid, container)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // the usual case costs no look at all mounts of the machine
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove mount points: %w", err)
	}
	return nil
}

// unmountBelow unmounts all that is mounted below dir, and only then returns nil: what
// is removed after that is not what was mounted.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil || len(points) == 0 {
		return err
	}
	slices.Reverse(points)
	for _, p := range points {
		// Lazily: a process that outlived its container must not keep the pod from going.
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	if points, err = mountsBelow(dir); err == nil && len(points) > 0 {
		err = fmt.Errorf("unmount %s: still mounted", points[0])
	}
	return err
}

// mountsBelow lists mount points below dir, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", dir, err)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for _, m := range mounts {
		out = append(out, m.Mountpoint)
	}
	return out, nil
}

// Recursive says whether a mount is read-only with all that is below, where the machine
// can do that. An error says what it cannot.
func Recursive(vm *v1.VolumeMount, possible bool) (bool, error) {
	if vm.RecursiveReadOnly == nil {
		return false, nil
	}
	switch *vm.RecursiveReadOnly {
	case v1.RecursiveReadOnlyIfPossible:
		return possible && vm.ReadOnly, nil
	case v1.RecursiveReadOnlyEnabled:
		if !possible {
			return false, errors.New("recursiveReadOnly: Enabled needs Linux 5.12 or newer; use IfPossible")
		}
		return true, nil
	}
	return false, nil
}
