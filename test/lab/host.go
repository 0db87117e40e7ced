package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

func lockForever() { runtime.LockOSThread() }

// containersConf is what Podman needs where CAP_SYS_RESOURCE is missing or
// control groups are hybrid, as in sandboxes and CI; elsewhere it does no harm.
// Hard and soft limits are equal because Podman 4.3 swaps them for infra
// containers; nproc is at most what Podman lowers its own to.
const containersConf = `[containers]
default_ulimits = ["nofile=16384:16384", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
wrapped = ["%s/wrapped"]
`

// wrapped is a second OCI runtime: it notes each call and has runc do it. The peers' handler
// of that name is a service at HOST/wrapped.sock, which a test starts that needs it.
const wrapped = `#!/bin/sh
echo "$@" >> %s/wrapped.log
exec runc "$@"
`

// registriesConf lets the hosts pull without TLS from a registry on the client
// (`lab registry`), which is also where they find what the registry mirrored.test has.
const registriesConf = `[[registry]]
location = "10.77.0.100:5000"
insecure = true
[[registry]]
location = "mirrored.test"
[[registry.mirror]]
location = "10.77.0.100:5000"
insecure = true
`

// hostInit is the first process of a host.
type hostInit struct {
	lab  *Lab
	host Host
	dir  string

	mu     sync.Mutex
	daemon *exec.Cmd
	exited chan struct{} // closed when daemon has been waited for
}

// HostInit runs as process 1 of a host: it mounts, starts Podman and obeys
// orders read from in, one line each, answering "ok" or an error on out. It
// returns when in ends, and with it the host. Used by cmd/lab.
func HostInit(dir, name string, in io.Reader, out io.Writer) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	host, err := l.Host(name)
	if err != nil {
		return err
	}
	h := &hostInit{lab: l, host: host, dir: l.HostDir(name)}
	if err := h.setUp(); err != nil {
		return err
	}
	if err := h.startPodman(); err != nil {
		return err
	}
	fmt.Fprintln(out, "ok")
	for s := bufio.NewScanner(in); s.Scan(); {
		var req request
		err := json.Unmarshal(s.Bytes(), &req)
		if err == nil {
			err = h.obey(req)
		}
		if err != nil {
			fmt.Fprintln(out, err)
		} else {
			fmt.Fprintln(out, "ok")
		}
	}
	return nil
}

func (h *hostInit) obey(req request) error {
	switch req.Verb {
	case "start":
		return h.startDaemon(req.Args)
	case "kill":
		return h.killDaemon()
	}
	return fmt.Errorf("unknown order %q", req.Verb)
}

// setUp makes this process's namespaces a machine: its own /proc, hostname and
// resolver, and memory file systems where a machine loses its files with its power.
func (h *hostInit) setUp() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := syscall.Sethostname([]byte(h.host.Name)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	// Podman keeps its locks in /dev/shm: shared, they would run out lab after lab.
	memory := map[string]string{filepath.Join(h.dir, "run"): "mode=0700", filepath.Join(h.dir, "tmp"): "mode=0700", "/dev/shm": "mode=1777"}
	for path, mode := range memory {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, mode); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	resolv := filepath.Join(h.dir, "resolv.conf")
	files := map[string]string{
		resolv:                                   "nameserver " + h.dns() + "\nsearch svc.cluster.local cluster.local\noptions timeout:1\n",
		filepath.Join(h.dir, "containers.conf"):  fmt.Sprintf(containersConf, h.dir),
		filepath.Join(h.dir, "wrapped"):          fmt.Sprintf(wrapped, h.dir),
		filepath.Join(h.dir, "registries.conf"):  registriesConf,
		filepath.Join(h.dir, "environment.json"): "",
	}
	env, err := json.Marshal(h.lab.env(h.host.Name))
	if err != nil {
		return err
	}
	files[filepath.Join(h.dir, "environment.json")] = string(env)
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			return err
		}
	}
	const systemd = "/run/systemd/resolve/resolv.conf" // where there is one, peers prefer it for pods
	for _, path := range []string{"/etc/resolv.conf", systemd} {
		target, err := filepath.EvalSymlinks(path)
		if path == systemd && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := syscall.Mount(resolv, target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("give the host its resolver: %w", err)
		}
	}
	return nil
}

// dns is the cluster's resolver.
func (h *hostInit) dns() string {
	if h.host.IP == h.host.IPv6 {
		return "fd43::a"
	}
	return "10.43.0.10"
}

// PodmanArgs are the flags that make podman this host's own.
func (l *Lab) PodmanArgs(host string) []string {
	d := l.HostDir(host)
	return []string{"--root", d + "/storage", "--runroot", d + "/run", "--tmpdir", d + "/tmp", "--network-config-dir", d + "/networks"}
}

func (h *hostInit) startPodman() error {
	if h.host.Name == Client {
		return nil
	}
	sock := filepath.Join(h.dir, "podman.sock")
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd, _, err := h.launch("podman.log", "podman", append(h.lab.PodmanArgs(h.host.Name), "system", "service", "-t", "0", "unix://"+sock)...)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(sock); err == nil {
			return nil
		}
		if time.Now().After(deadline) || cmd.ProcessState != nil {
			return fmt.Errorf("podman did not start, see %s/podman.log", h.dir)
		}
	}
}

// launch starts a program whose output is appended to a log of the host.
func (h *hostInit) launch(logName, program string, args ...string) (*exec.Cmd, chan struct{}, error) {
	log, err := os.OpenFile(filepath.Join(h.dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.lab.env(h.host.Name), h.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", program, err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	return cmd, exited, nil
}

func (h *hostInit) startDaemon(args []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemon != nil {
		select {
		case <-h.exited:
		default:
			return errors.New("the daemon runs already")
		}
	}
	cmd, exited, err := h.launch("rookery.log", filepath.Join(h.lab.Bin, "rookery"), append([]string{"up"}, args...)...)
	if err != nil {
		return err
	}
	h.daemon, h.exited = cmd, exited
	return nil
}

func (h *hostInit) killDaemon() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemon == nil {
		return errors.New("the daemon was never started")
	}
	if err := h.daemon.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-h.exited
	return nil
}
