package runtimetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/runtimetest/guest"
)

// testUser: who the first process is at its start, told also by a daemon that did not start it.
func testUser(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a")
	spec.User, spec.Groups = "1000:2000", []int64{3000}
	id, err := f.rt.CreateContainer(f.ctx, s.ID, spec)
	f.must("create", err)
	_, err = f.rt.User(f.ctx, id)
	f.wantErr("user before the start", err, runtime.ErrNotFound)
	f.must("start", f.rt.StartContainer(f.ctx, id))
	f.user(id, runtime.User{UID: 1000, GID: 2000, Groups: []int64{3000}})
	f.rt = f.Connect(t, f.owner)
	f.user(id, runtime.User{UID: 1000, GID: 2000, Groups: []int64{3000}})
	f.must("stop", f.rt.StopContainer(f.ctx, f.listening(id), 5*time.Second))
	f.user(id, runtime.User{UID: 1000, GID: 2000, Groups: []int64{3000}})
	_, err = f.rt.User(f.ctx, "none")
	f.wantErr("user of no container", err, runtime.ErrNotFound)
}

func (f *fixture) user(id string, want runtime.User) {
	f.t.Helper()
	have, err := f.rt.User(f.ctx, id)
	f.must("user", err)
	have.Groups = slices.DeleteFunc(have.Groups, func(gid int64) bool { return gid == want.GID }) // it may be among them
	slices.Sort(have.Groups)
	if have.UID != want.UID || have.GID != want.GID || !slices.Equal(slices.Compact(have.Groups), want.Groups) {
		f.t.Errorf("the user is %+v, want %+v", have, want)
	}
}

// testGroups: the groups that the image gives its user, where they are wanted, and where not.
func testGroups(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	for i, tt := range []struct {
		user  string
		image bool
		want  runtime.User
	}{
		{guest.User, true, runtime.User{UID: guest.UID, GID: guest.GID, Groups: []int64{7, guest.Extra}}},
		{guest.User, false, runtime.User{UID: guest.UID, GID: guest.GID, Groups: []int64{7}}},
		{fmt.Sprint(guest.UID), true, runtime.User{UID: guest.UID, GID: guest.GID, Groups: []int64{7, guest.Extra}}},
		{fmt.Sprint(guest.UID), false, runtime.User{UID: guest.UID, GID: guest.GID, Groups: []int64{7}}},
		{fmt.Sprint(guest.UID, ":5"), true, runtime.User{UID: guest.UID, GID: 5, Groups: []int64{7, guest.Extra}}},
		{fmt.Sprint(guest.UID, ":5"), false, runtime.User{UID: guest.UID, GID: 5, Groups: []int64{7}}},
		{"4321", false, runtime.User{UID: 4321, GID: 0, Groups: []int64{7}}},
		{"0", false, runtime.User{Groups: []int64{7}}},
	} {
		spec := f.spec(fmt.Sprint("c", i))
		spec.User, spec.ImageGroups, spec.Groups = tt.user, tt.image, []int64{7}
		id := f.start(s, spec)
		f.user(id, tt.want)
		if have := status(f, f.container(s, id).PID, "Groups"); tt.image && !strings.Contains(have+" ", fmt.Sprint(guest.Extra, " ")) || !tt.image && strings.Contains(have, fmt.Sprint(guest.Extra)) {
			t.Errorf("as %s: the process has groups %s", tt.user, have)
		}
	}
	if now, err := f.rt.Inspect(f.ctx, s.ID); err != nil || len(now.Containers) != 8 {
		t.Errorf("the sandbox has %d containers %v", len(now.Containers), err)
	}
}

// status is a line of a process's /proc/PID/status.
func status(f *fixture, pid int, name string) string {
	f.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	f.must("read status", err)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	f.t.Fatalf("no %s in %s", name, data)
	return ""
}

// testOwnUsers: a sandbox whose root is nobody on the machine, and its containers.
func testOwnUsers(t *testing.T, f *fixture) {
	const first = 1 << 20
	s, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("pod"), IDs: runtime.IDRange{First: first, Size: 65536}})
	f.must("run", err)
	spec := f.spec("a")
	spec.User = "5:6"
	id := f.listening(f.start(s, spec))
	pid := f.container(s, id).PID
	for name, want := range map[string]int{"Uid": first + 5, "Gid": first + 6} {
		if have := strings.Fields(status(f, pid, name))[0]; have != fmt.Sprint(want) {
			t.Errorf("%s on the machine is %s, want %d", name, have, want)
		}
	}
	f.user(id, runtime.User{UID: 5, GID: 6})
	for _, ns := range []string{"user", "net"} {
		a, errA := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		b, errB := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", s.PID, ns))
		if a != b || errA != nil || errB != nil {
			t.Errorf("the %s namespace is %s, the sandbox's is %s: %v %v", ns, a, b, errA, errB)
		}
	}
}

// testSecurity: what a process may do, as the kernel has it.
func testSecurity(t *testing.T, f *fixture) {
	const netBindService, all = "0000000000000400", "0000000000000000"
	profile := filepath.Join(t.TempDir(), "profile.json")
	f.must("write", os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), 0o644))
	s := f.sandbox("pod")
	for name, tt := range map[string]struct {
		set  func(c *runtime.ContainerSpec)
		want map[string]string
	}{
		"default":    {func(c *runtime.ContainerSpec) {}, map[string]string{"Seccomp": "2", "NoNewPrivs": "0"}},
		"few":        {func(c *runtime.ContainerSpec) { c.CapDrop, c.CapAdd = []string{"ALL"}, []string{"NET_BIND_SERVICE"} }, map[string]string{"CapBnd": netBindService, "CapEff": netBindService}},
		"none":       {func(c *runtime.ContainerSpec) { c.CapDrop = []string{"ALL"} }, map[string]string{"CapBnd": all}},
		"no new":     {func(c *runtime.ContainerSpec) { c.NoNewPrivileges = true }, map[string]string{"NoNewPrivs": "1"}},
		"unconfined": {func(c *runtime.ContainerSpec) { c.SeccompUnconfined = true }, map[string]string{"Seccomp": "0"}},
		"profile":    {func(c *runtime.ContainerSpec) { c.SeccompProfile = profile }, map[string]string{"Seccomp": "2"}},
		"privileged": {func(c *runtime.ContainerSpec) { c.Privileged = true }, map[string]string{"Seccomp": "0"}},
	} {
		spec := f.spec(strings.ReplaceAll(name, " ", "-"))
		tt.set(&spec)
		pid := f.container(s, f.start(s, spec)).PID
		for line, want := range tt.want {
			if have := status(f, pid, line); have != want {
				t.Errorf("%s: %s is %s, want %s", name, line, have, want)
			}
		}
	}
	spec := f.spec("no-profile")
	spec.SeccompProfile = profile + "-none"
	id, err := f.rt.CreateContainer(f.ctx, s.ID, spec)
	if err == nil {
		err = f.rt.StartContainer(f.ctx, id)
	}
	if err == nil || !strings.Contains(err.Error(), spec.SeccompProfile) {
		t.Errorf("with a profile that is not there: %v", err)
	}
}

// testDevices: a device of the machine, at the same place, and no other.
func testDevices(t *testing.T, f *fixture) {
	const device = "/dev/net/tun" // which peers need for WireGuard
	_, err := os.Stat(device)
	f.must("look at a device to give", err)
	s := f.sandbox("pod")
	spec := f.spec("a")
	spec.Devices = []string{device}
	for name, spec := range map[string]runtime.ContainerSpec{"with": spec, "without": f.spec("b")} {
		pid := f.container(s, f.start(s, spec)).PID
		info, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, device))
		if has := err == nil && info.Mode()&os.ModeCharDevice != 0; has != (name == "with") {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

// testPropagation: what the machine mounts later below a mount, and what the container mounts.
func testPropagation(t *testing.T, f *fixture) {
	dir := t.TempDir()
	f.must("mount", unix.Mount("tmpfs", dir, "tmpfs", 0, "")) // whose propagation is ours to say
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f.must("share", unix.Mount("", dir, "", unix.MS_SHARED, ""))
	f.must("mkdir", os.Mkdir(dir+"/below", 0o755))
	s := f.sandbox("pod")
	pids := map[string]int{}
	for _, propagation := range []string{"", "rslave", "rshared"} {
		spec := f.spec("c" + propagation)
		spec.Mounts = []runtime.Mount{{Source: dir, Target: "/mnt", Propagation: propagation}}
		pids[propagation] = f.container(s, f.start(s, spec)).PID
	}
	f.must("mount below", unix.Mount("tmpfs", dir+"/below", "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir+"/below", unix.MNT_DETACH) })
	f.must("write", os.WriteFile(dir+"/below/file", nil, 0o644))
	for propagation, pid := range pids {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/mnt/below/file", pid))
		if sees := err == nil; sees != (propagation != "") {
			t.Errorf("propagation %q: what is mounted later: %v", propagation, err)
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		f.must("read mounts", err)
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); fields[4] == "/mnt" && strings.Contains(line, " shared:") != (propagation == "rshared") {
				t.Errorf("propagation %q: %s", propagation, line)
			}
		}
	}
}
