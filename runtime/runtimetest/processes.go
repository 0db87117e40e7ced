package runtimetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// kill ends a sandbox's infra container from outside.
func kill(f *fixture, s runtime.Sandbox) error {
	if k, ok := f.rt.(interface{ KillSandbox(id string) error }); ok {
		return k.KillSandbox(s.ID)
	}
	if !f.Processes {
		return errors.New("the engine has neither processes nor KillSandbox")
	}
	return syscall.Kill(s.PID, syscall.SIGKILL)
}

// output runs a container to its end and returns what it printed.
func (f *fixture) output(s runtime.Sandbox, spec runtime.ContainerSpec) string {
	f.t.Helper()
	id := f.start(s, spec)
	c := f.until(s, id, runtime.Exited)
	var out buffer
	f.must("logs", f.rt.Logs(f.ctx, id, runtime.LogOptions{}, &out, &out))
	if c.ExitCode != 0 {
		f.t.Fatalf("%s exited with %d: %s", spec.Name, c.ExitCode, out.String())
	}
	return strings.TrimSpace(out.String())
}

// testMounts checks that node's /etc files reach the container, and Podman's do not.
func testMounts(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	dir := t.TempDir()
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		path := filepath.Join(dir, name)
		f.must("write", os.WriteFile(path, []byte("from node\n"), 0o644))
		spec := f.spec("read-"+name, "readfile", "/etc/"+name)
		spec.Mounts = []runtime.Mount{{Source: path, Target: "/etc/" + name, ReadOnly: true}}
		if got := f.output(s, spec); got != "from node" {
			t.Errorf("/etc/%s is %q", name, got)
		}
	}
	spec := f.spec("env", "env", "GREETING")
	spec.Env = []runtime.EnvVar{{Name: "GREETING", Value: "a=b c"}}
	spec.ReadOnlyRootfs, spec.NoNewPrivileges, spec.User, spec.CapDrop = true, true, "1000:1000", []string{"ALL"}
	spec.CPUQuota, spec.CPUShares, spec.Groups = 50_000, 256, []int64{2000}
	if got := f.output(s, spec); got != "a=b c" {
		t.Errorf("environment variable is %q", got)
	}
}

func testOOM(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "eat")
	spec.MemoryLimit = 32 << 20
	info, err := f.rt.Info(f.ctx)
	f.must("info", err)
	id := f.start(s, spec)
	c := f.until(s, id, runtime.Exited)
	// With version 1 of cgroups conmon sees an OOM kill on some kernels only; the kill itself must happen.
	if c.ExitCode != 137 || info.CgroupV2 && !c.OOMKilled {
		t.Errorf("container without memory is %+v", c)
	}
}

func testNamespaces(t *testing.T, f *fixture) {
	link := func(pid int, name string) string {
		t.Helper()
		l, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		f.must("read namespace", err)
		return l
	}
	own, shared := f.sandbox("own"), runtime.SandboxSpec{Name: f.name("host"), HostNetwork: true, HostPID: true, HostIPC: true}
	c := f.container(own, f.start(own, f.spec("a")))
	for _, ns := range []string{"net", "ipc", "uts"} {
		if link(c.PID, ns) != link(own.PID, ns) {
			t.Errorf("container and sandbox do not share %s", ns)
		}
	}
	self := os.Getpid()
	if link(own.PID, "net") == link(self, "net") || link(c.PID, "pid") == link(own.PID, "pid") {
		t.Error("a namespace is shared that should not be")
	}
	host, err := f.rt.RunSandbox(f.ctx, shared)
	f.must("run", err)
	f.rt = f.Connect(t, f.owner) // what it needs of the sandbox must survive the daemon
	c = f.container(host, f.start(host, f.spec("b")))
	for _, ns := range []string{"net", "ipc", "uts", "pid"} {
		if link(c.PID, ns) != link(self, ns) {
			t.Errorf("container with the host's namespaces has its own %s", ns)
		}
	}
	together, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("together"), ShareProcesses: true, Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "1"}})
	f.must("run", err)
	c = f.container(together, f.start(together, f.spec("c")))
	if link(c.PID, "pid") != link(together.PID, "pid") {
		t.Error("processes are not shared")
	}
	f.must("stop", f.rt.StopContainer(f.ctx, f.listening(c.ID), 5*time.Second))
	if c := f.container(together, c.ID); c.ExitCode != 0 {
		t.Errorf("container is %+v", c)
	}
}
