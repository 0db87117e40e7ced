package runtimetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// testOOM: a container that takes more memory than it may is killed for it, whether the
// limit is its own or its sandbox's.
func testOOM(t *testing.T, f *fixture) {
	alone := f.spec("a", "eat")
	alone.MemoryLimit = 32 << 20
	whole, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("whole"), Resources: runtime.Resources{CPUShares: 512, MemoryLimit: 32 << 20}})
	f.must("run", err)
	// The kernel may kill a second time before the first one's memory is free. Where conmon
	// may not protect itself (no CAP_SYS_RESOURCE) it would be the next, and Podman never
	// hear of the end; this one is before it.
	bystander := f.spec("bystander", "run")
	score := 100
	bystander.OOMScoreAdj = &score
	f.start(whole, bystander)
	for _, tt := range []struct {
		in   runtime.Sandbox
		spec runtime.ContainerSpec
	}{{f.sandbox("pod"), alone}, {whole, f.spec("b", "eat")}} {
		id := f.start(tt.in, tt.spec)
		if c := f.until(tt.in, id, runtime.Exited); c.ExitCode != 137 || !c.OOMKilled {
			t.Errorf("container without memory is %+v", c)
		}
	}
	id := f.listening(f.start(whole, f.spec("c", "ignore")))
	f.must("stop", f.rt.StopContainer(f.ctx, id, 0))
	if c := f.container(whole, id); c.ExitCode != 137 || c.OOMKilled {
		t.Errorf("container that was killed for another reason is %+v", c)
	}
}

// testSandboxLimit: resources of a sandbox bound all of its containers, and can be changed.
func testSandboxLimit(t *testing.T, f *fixture) {
	s, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("pod"), Resources: runtime.Resources{CPUShares: 256, CPUQuota: 50_000, CPUPeriod: 100_000, MemoryLimit: 64 << 20}})
	f.must("run", err)
	f.start(s, f.spec("a", "run"))
	check := func(shares, weight, quota, max string, memory int64) {
		t.Helper()
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.PID))
		f.must("read control group", err)
		seen := 0
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
			at := filepath.Dir(strings.TrimSuffix(fields[2], "/container"))
			for file, want := range map[string]string{
				"cpu/cpu.shares": shares, "cpu,cpuacct/cpu.shares": shares, "/cpu.weight": weight,
				"cpu/cpu.cfs_quota_us": quota, "cpu,cpuacct/cpu.cfs_quota_us": quota, "/cpu.max": max,
			} {
				controller, name, _ := strings.Cut(file, "/")
				if have, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, at, name)); err == nil && fields[1] == controller {
					seen++
					if strings.TrimSpace(string(have)) != want {
						t.Errorf("%s is %s, want %s", file, have, want)
					}
				}
			}
			for _, file := range []string{filepath.Join("/sys/fs/cgroup/memory", at, "memory.limit_in_bytes"), filepath.Join("/sys/fs/cgroup", at, "memory.max")} {
				text, err := os.ReadFile(file)
				if err != nil || fields[1] != "memory" && fields[1] != "" {
					continue
				}
				seen++
				// The engine may add what it needs itself; without a limit it is a huge number, or max.
				if have, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && memory > 0 && (have < memory || have > memory+memory/2) || memory == 0 && err == nil && have < 1<<60 {
					t.Errorf("%s is %s, want %d", file, text, memory)
				}
			}
		}
		if seen < 3 {
			t.Errorf("not found in %s", data)
		}
	}
	check("256", "10", "50000", "50000 100000", 64<<20)
	f.must("raise", f.rt.UpdateSandbox(f.ctx, s, runtime.Resources{CPUShares: 512, CPUQuota: 80_000, CPUPeriod: 100_000, MemoryLimit: 128 << 20}))
	check("512", "20", "80000", "80000 100000", 128<<20)
	f.must("lower", f.rt.UpdateSandbox(f.ctx, s, runtime.Resources{CPUShares: 2, CPUQuota: 20_000, CPUPeriod: 100_000, MemoryLimit: 48 << 20}))
	check("2", "1", "20000", "20000 100000", 48<<20)
	f.must("unbind", f.rt.UpdateSandbox(f.ctx, s, runtime.Resources{CPUShares: 2}))
	check("2", "1", "-1", "max 100000", 0)
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
	if got := f.output(together, f.spec("sysctl", "readfile", "/proc/sys/net/ipv4/ip_unprivileged_port_start")); got != "1" {
		t.Errorf("ip_unprivileged_port_start is %q in the sandbox", got)
	}
	if got := f.output(own, f.spec("default", "readfile", "/proc/sys/net/ipv4/ip_unprivileged_port_start")); got == "1" {
		t.Error("ip_unprivileged_port_start is set in another sandbox")
	}
	f.must("stop", f.rt.StopContainer(f.ctx, f.listening(c.ID), 5*time.Second))
	if c := f.container(together, c.ID); c.ExitCode != 0 {
		t.Errorf("container is %+v", c)
	}
}

// testUpdateLimit: an update counts for what runs already.
func testUpdateLimit(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "run"))
	f.must("update", f.rt.UpdateContainer(f.ctx, id, runtime.Resources{CPUShares: 512, CPUQuota: 20_000, CPUPeriod: 100_000, MemoryLimit: 96 << 20}))
	pid := f.container(s, id).PID
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	f.must("read control group", err)
	found := false
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, path := range []string{"/sys/fs/cgroup" + fields[2] + "/memory.max", "/sys/fs/cgroup/memory" + fields[2] + "/memory.limit_in_bytes"} {
			if limit, err := os.ReadFile(path); err == nil && (fields[1] == "" || fields[1] == "memory") {
				found = true
				if have := strings.TrimSpace(string(limit)); have != fmt.Sprint(96<<20) {
					t.Errorf("%s is %s", path, have)
				}
			}
		}
	}
	if !found {
		t.Errorf("no memory limit was found for %q", data)
	}
}

// testJoined: a container that sees another's processes, in a sandbox whose others do not.
func testJoined(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "run"))
	spec := f.spec("b", "run")
	spec.ProcessesOf = id
	beside := f.start(s, spec)
	namespace := func(id string) string {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", f.container(s, id).PID))
		f.must("read namespace", err)
		return link
	}
	if namespace(beside) != namespace(id) {
		t.Error("it does not see the processes of the other")
	}
	f.must("remove the sandbox", f.rt.RemoveSandbox(f.ctx, s.ID))
}
