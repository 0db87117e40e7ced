package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/runtime/runtimetest/guest"
	"github.com/rundigitalplatform/rookery/test/image"
)

const (
	guestImage   = "localhost/guest:1"
	guestProgram = "/guest"
)

// containersConf lets Podman run where CAP_SYS_RESOURCE is missing and cgroups are
// hybrid. It does no harm elsewhere.
const containersConf = `[containers]
default_ulimits = ["nofile=16384:16384","nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
wrapped = ["DIR/wrapped"]
`

// wrapped is an OCI runtime beside the default one: it notes each call and has runc do it.
const wrapped = `#!/bin/sh
echo "$@" >> DIR/wrapped.log
exec runc "$@"
`

// service is a Podman service of the test's own, with its own storage.
type service struct {
	dir    string
	socket string
	cmd    *exec.Cmd
	output *bytes.Buffer
}

// requirePodman fails where Podman cannot be tried: a suite that skips itself
// would go unnoticed.
func requirePodman(t testing.TB) {
	if os.Getenv("ROOKERY_SKIP_PODMAN") == "1" {
		t.Skip("ROOKERY_SKIP_PODMAN=1")
	}
	for _, program := range []string{"podman", "runc", "conmon"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install it, or set ROOKERY_SKIP_PODMAN=1", err)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("run as root, or set ROOKERY_SKIP_PODMAN=1")
	}
}

func (s *service) command(args ...string) *exec.Cmd {
	global := []string{"--root", s.dir + "/root", "--runroot", s.dir + "/run", "--tmpdir", s.dir + "/tmp", "--network-config-dir", s.dir + "/net"}
	cmd := exec.Command("podman", append(global, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+s.dir+"/containers.conf", "CONTAINERS_REGISTRIES_CONF="+s.dir+"/registries.conf")
	return cmd
}

// startService runs a service until the test ends, and then removes all that it made.
func startService(t testing.TB) *service { return startServiceWith(t, "", 0) }

// startServiceWith has its own registries.conf and, unless it is 0, so many bytes of storage.
func startServiceWith(t testing.TB, registries string, storage int) *service {
	// conmon leaves its parent; here it becomes this process's child, which buries it at the end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "rk-podman-") // short: unix sockets allow 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &service{dir: dir, socket: dir + "/podman.sock", output: &bytes.Buffer{}}
	for name, text := range map[string]string{"containers.conf": containersConf, "registries.conf": registries, "wrapped": wrapped} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if storage > 0 {
		if err := os.Mkdir(dir+"/root", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir+"/root", "tmpfs", 0, fmt.Sprintf("size=%d", storage)); err != nil {
			t.Fatal(err)
		}
	}
	s.cmd = s.command("system", "service", "-t", "0", "unix://"+s.socket)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })
	s.listens(t, s.socket)
	return s
}

// second starts a service on the same storage with another OCI runtime, until the test ends.
func (s *service) second(t testing.TB, runtime string) (socket string) {
	socket = s.dir + "/" + runtime + ".sock"
	cmd := s.command("--runtime", runtime, "system", "service", "-t", "0", "unix://"+socket)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("stop service: %v", err)
		}
		_ = cmd.Wait() // it says that it was terminated
		if t.Failed() {
			t.Logf("podman service of %s said: %s", runtime, &output)
		}
	})
	s.listens(t, socket)
	return socket
}

func (s *service) listens(t testing.TB, socket string) {
	deadline := time.After(20 * time.Second)
	for ticker := time.NewTicker(20 * time.Millisecond); ; {
		if _, err := os.Stat(socket); err == nil {
			ticker.Stop()
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("podman service does not listen: %s", s.output)
		}
	}
}

func (s *service) stop(t testing.TB) {
	if out, err := s.command("pod", "rm", "--all", "--force", "--time", "0").CombinedOutput(); err != nil {
		t.Errorf("remove pods: %v: %s", err, out)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stop service: %v", err)
	}
	if err := s.cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("stop service: %v", err)
		}
	}
	if t.Failed() {
		t.Logf("podman service said: %s", s.output)
	}
	s.unmount(t)
	if err := os.RemoveAll(s.dir); err != nil {
		t.Errorf("remove directory: %v", err)
	}
	bury(t)
}

func (s *service) unmount(t testing.TB) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Errorf("read mounts: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if point := strings.Fields(lines[i])[4]; strings.HasPrefix(point, s.dir+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", point, err)
			}
		}
	}
}

// bury waits for the conmon processes that are this process's children by now. It
// may run only when no exec.Cmd is under way.
func bury(t testing.TB) {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.ECHILD) {
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Errorf("wait for conmon: %v", err)
			return
		}
		if pid == 0 { // there are some, alive: podman's clean-up of the last containers
			if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}
	t.Error("processes of podman are still running")
}

// guestArchive builds package guest's program and puts it into an image of that name.
func guestArchive(t testing.TB, name, program string) []byte {
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	files := []image.File{{Path: guestProgram, Mode: 0o755, Data: data}, {Path: "/etc", Dir: true}, {Path: "/tmp", Dir: true, Mode: 0o1777}}
	for path, text := range guest.Accounts() {
		files = append(files, image.File{Path: path, Mode: 0o644, Data: []byte(text)})
	}
	var out bytes.Buffer
	if err := image.Write(&out, image.Spec{
		Names:      []string{name},
		Files:      files,
		Entrypoint: []string{guestProgram},
		StopSignal: "SIGTERM",
		User:       "0",
		Labels:     map[string]string{"name": name}, // so that two names are two images
	}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func buildGuest(t testing.TB) string {
	program := filepath.Join(t.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "../runtimetest/guestcmd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v: %s", err, out)
	}
	return program
}

func newRuntime(t testing.TB, socket, owner string) *Runtime {
	return newRuntimeWith(t, Config{Socket: socket, Owner: owner})
}

// fakePodman is a Runtime of a Podman of that version, which is nothing but those answers.
func fakePodman(t *testing.T, version string, answer http.HandlerFunc) *Runtime {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Libpod-API-Version", version)
		answer(w, r)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return newRuntimeWith(t, Config{Socket: socket, Owner: "test", Logger: slog.New(slog.DiscardHandler)})
}

func newRuntimeWith(t testing.TB, cfg Config) *Runtime {
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func load(t testing.TB, s *service, archive []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names, err := newRuntime(t, s.socket, "load").LoadImage(ctx, bytes.NewReader(archive))
	if err != nil || fmt.Sprint(names) != "["+guestImage+"]" {
		t.Fatalf("load: %q, %v", names, err)
	}
}
