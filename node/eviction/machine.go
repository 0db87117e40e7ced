package eviction

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is this one.
type Machine struct {
	Proc   string                                      // /proc
	Memory func() (used int64, total int64, err error) // in bytes; used is the working set
}

// Observe reads what is left. nodeFS and imageFS are directories on the two file systems;
// an empty one is not looked at. What can be read is returned beside an error. It takes a
// few system calls and touches no disk.
func (m Machine) Observe(nodeFS, imageFS string) (Observations, error) {
	out := Observations{}
	var errs []error
	if used, total, err := m.Memory(); err != nil {
		errs = append(errs, err)
	} else {
		out[MemoryAvailable] = Observation{max(total-used, 0), total}
	}
	for _, fs := range []struct {
		dir           string
		bytes, inodes Signal
	}{{nodeFS, NodeFSAvailable, NodeFSInodesFree}, {imageFS, ImageFSAvailable, ImageFSInodesFree}} {
		if fs.dir == "" {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(fs.dir, &st); err != nil {
			errs = append(errs, fmt.Errorf("look for free space: statfs %s: %w", fs.dir, err))
			continue
		}
		out[fs.bytes] = Observation{int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize}
		if st.Files > 0 { // btrfs and others have no fixed number
			out[fs.inodes] = Observation{int64(st.Ffree), int64(st.Files)}
		}
	}
	if o, err := m.processes(); err != nil {
		errs = append(errs, err)
	} else {
		out[PIDAvailable] = o
	}
	return out, errors.Join(errs...)
}

// processes counts threads, as kubelet does: each takes a process id.
func (m Machine) processes() (Observation, error) {
	read := func(path string) (string, error) {
		data, err := os.ReadFile(m.Proc + path)
		return strings.TrimSpace(string(data)), err
	}
	most := int64(1 << 62)
	for _, path := range []string{"/sys/kernel/pid_max", "/sys/kernel/threads-max"} {
		text, err := read(path)
		if err != nil {
			return Observation{}, fmt.Errorf("count processes: %w", err)
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Observation{}, fmt.Errorf("count processes: %s: %w", path, err)
		}
		most = min(most, n)
	}
	text, err := read("/loadavg") // "0.20 0.18 0.12 RUNNABLE/ALL LAST", proc(5)
	if err != nil {
		return Observation{}, fmt.Errorf("count processes: %w", err)
	}
	fields := strings.Fields(text)
	if len(fields) < 4 {
		return Observation{}, fmt.Errorf("count processes: /loadavg is %q", text)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	n, err := strconv.ParseInt(all, 10, 64)
	if err != nil {
		return Observation{}, fmt.Errorf("count processes: /loadavg: %w", err)
	}
	return Observation{most - n, most}, nil
}

// stalled is when the kernel calls (Documentation/accounting/psi.rst): something has waited
// for memory for 200 ms of 2 s, the shortest window that needs no privilege. The page cache is
// gone by then; a slow look comes too late. The kernel drops the last byte.
const stalled = "some 200000 2000000\x00"

// Alarm calls wake when the machine stalls for want of memory, until ctx ends: at most every
// two seconds. Where the kernel cannot tell, it returns the reason at once.
func (m Machine) Alarm(ctx context.Context, wake func()) error {
	file, err := os.OpenFile(m.Proc+"/pressure/memory", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("watch for memory pressure: %w", err)
	}
	defer file.Close()
	if _, err := file.WriteString(stalled); err != nil {
		return fmt.Errorf("watch for memory pressure: %w", err)
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch for memory pressure: %w", err)
	}
	defer unix.Close(end)
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(end, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	for {
		fds := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLPRI}, {Fd: int32(end), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("watch for memory pressure: %w", err)
		case fds[1].Revents != 0:
			return nil
		case fds[0].Revents&unix.POLLERR != 0:
			return errors.New("watch for memory pressure: the kernel gave it up")
		case fds[0].Revents&unix.POLLPRI != 0:
			wake()
		}
	}
}
