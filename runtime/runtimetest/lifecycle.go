package runtimetest

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

func testInfo(t *testing.T, f *fixture) {
	f.must("ping", f.rt.Ping(f.ctx))
	info, err := f.rt.Info(f.ctx)
	f.must("info", err)
	if info.Name == "" || info.Version == "" || info.OCIRuntime == "" {
		t.Errorf("info is incomplete: %+v", info)
	}
}

func testLifecycle(t *testing.T, f *fixture) {
	before := time.Now().Add(-2 * time.Second)
	s := f.sandbox("pod")
	if !s.Running || s.PID == 0 || s.ID == "" || s.Name != f.name("pod") || s.Labels["test"] != "yes" || s.Labels[runtime.LabelOwner] != f.owner || s.Created.Before(before) {
		t.Errorf("sandbox is %+v", s)
	}
	id, err := f.rt.CreateContainer(f.ctx, s.ID, f.spec("a", "run"))
	f.must("create", err)
	c := f.container(s, id)
	if c.State != runtime.Created || !c.Started.IsZero() || c.PID != 0 {
		t.Errorf("container before its start is %+v", c)
	}
	f.must("start", f.rt.StartContainer(f.ctx, id))
	c = f.container(s, id)
	if c.State != runtime.Running || c.PID == 0 || c.Started.Before(before) || !c.Finished.IsZero() {
		t.Errorf("running container is %+v", c)
	}
	if c.Name != f.name("a") || c.Labels["which"] != "a" || c.Labels[runtime.LabelSandbox] != s.Name || !strings.HasPrefix(c.ImageID, "sha256:") || c.Image != f.Image {
		t.Errorf("running container is %+v", c)
	}
	f.must("stop", f.rt.StopContainer(f.ctx, f.listening(id), 10*time.Second))
	c = f.container(s, id)
	if c.State != runtime.Exited || c.ExitCode != 0 || c.Finished.Before(before) || c.PID != 0 || c.Started.Before(before) {
		t.Errorf("stopped container is %+v", c)
	}
	f.must("remove", f.rt.RemoveContainer(f.ctx, id))
	now, err := f.rt.Inspect(f.ctx, s.ID)
	f.must("inspect", err)
	if len(now.Containers) != 0 || !now.Running || now.PID != s.PID || now.ID != s.ID {
		t.Errorf("sandbox without its container is %+v", now)
	}
	f.start(s, f.spec("a", "run")) // the name is free again
	f.must("stop sandbox", f.rt.StopSandbox(f.ctx, s.ID))
	now, err = f.rt.Inspect(f.ctx, s.ID)
	f.must("inspect", err)
	if now.Running || now.PID != 0 || len(now.Containers) != 1 || now.Containers[0].State != runtime.Exited || now.Containers[0].ExitCode != 137 {
		t.Errorf("stopped sandbox is %+v", now)
	}
	f.must("remove sandbox", f.rt.RemoveSandbox(f.ctx, s.ID))
	_, err = f.rt.Inspect(f.ctx, s.ID)
	f.wantErr("inspect a removed sandbox", err, runtime.ErrNotFound)
}

func testNotFound(t *testing.T, f *fixture) {
	const none = "0123456789ab"
	_, err := f.rt.Inspect(f.ctx, none)
	f.wantErr("inspect", err, runtime.ErrNotFound)
	_, err = f.rt.CreateContainer(f.ctx, none, f.spec("a"))
	f.wantErr("create container in no sandbox", err, runtime.ErrNotFound)
	f.wantErr("start", f.rt.StartContainer(f.ctx, none), runtime.ErrNotFound)
	_, err = f.rt.Exec(f.ctx, none, runtime.ExecOptions{Command: []string{"a"}})
	f.wantErr("exec", err, runtime.ErrNotFound)
	f.wantErr("attach", f.rt.Attach(f.ctx, none, runtime.Streams{}), runtime.ErrNotFound)
	f.wantErr("logs", f.rt.Logs(f.ctx, none, runtime.LogOptions{}, nil, nil), runtime.ErrNotFound)
	_, err = f.rt.Image(f.ctx, "localhost/no-such-image:1")
	f.wantErr("image", err, runtime.ErrNotFound)
	s := f.sandbox("pod")
	spec := f.spec("a")
	spec.Image = "localhost/no-such-image:1"
	_, err = f.rt.CreateContainer(f.ctx, s.ID, spec)
	f.wantErr("create container of no image", err, runtime.ErrNotFound)
}

func testExists(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	_, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: s.Name})
	f.wantErr("run a sandbox twice", err, runtime.ErrExists)
	id := f.start(s, f.spec("a"))
	_, err = f.rt.CreateContainer(f.ctx, s.ID, f.spec("a"))
	f.wantErr("create a container twice", err, runtime.ErrExists)
	if c := f.container(s, id); c.State != runtime.Running {
		t.Errorf("the first container suffered: %+v", c)
	}
}

func testIdempotent(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.listening(f.start(s, f.spec("a")))
	for range 2 {
		f.must("stop", f.rt.StopContainer(f.ctx, id, 5*time.Second))
	}
	for range 2 {
		f.must("remove", f.rt.RemoveContainer(f.ctx, id))
	}
	f.must("stop what is gone", f.rt.StopContainer(f.ctx, id, time.Second))
	for range 2 {
		f.must("stop sandbox", f.rt.StopSandbox(f.ctx, s.ID))
	}
	for range 2 {
		f.must("remove sandbox", f.rt.RemoveSandbox(f.ctx, s.ID))
	}
	f.must("stop a sandbox that is gone", f.rt.StopSandbox(f.ctx, s.ID))
}

func testExitCode(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "exit", "3"))
	c := f.until(s, id, runtime.Exited)
	if c.ExitCode != 3 || c.OOMKilled || c.Finished.IsZero() {
		t.Errorf("container that exited with 3 is %+v", c)
	}
	if now, err := f.rt.Inspect(f.ctx, s.ID); err != nil || !now.Running {
		t.Errorf("sandbox ended with its container: %+v, %v", now, err)
	}
}

func testStopGrace(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.listening(f.start(s, f.spec("deaf", "ignore")))
	began := time.Now()
	f.must("stop", f.rt.StopContainer(f.ctx, id, time.Second))
	if took := time.Since(began); took < 900*time.Millisecond || took > 8*time.Second {
		t.Errorf("stopping a deaf container with a grace of 1 s took %s", took)
	}
	if c := f.container(s, id); c.State != runtime.Exited || c.ExitCode != 137 {
		t.Errorf("killed container is %+v", c)
	}
}

// testDeadSandbox stops and removes a sandbox whose infra container is gone before its containers.
func testDeadSandbox(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "ignore"))
	f.must("kill", kill(f, s))
	f.poll("the sandbox is not running", func() bool {
		now, err := f.rt.Inspect(f.ctx, s.ID)
		f.must("inspect", err)
		return !now.Running
	})
	f.must("stop sandbox", f.rt.StopSandbox(f.ctx, s.ID))
	f.until(s, id, runtime.Exited)
	f.must("remove sandbox", f.rt.RemoveSandbox(f.ctx, s.ID))
	list, err := f.rt.List(f.ctx, nil)
	f.must("list", err)
	if len(list) != 0 {
		t.Errorf("left behind: %+v", list)
	}
}

// testAdopt looks at running containers through a new connection.
func testAdopt(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	running, ended := f.start(s, f.spec("a")), f.start(s, f.spec("b", "exit", "4"))
	f.until(s, ended, runtime.Exited)
	next := f.Connect(t, f.owner)
	list, err := next.List(f.ctx, nil)
	f.must("list", err)
	if len(list) != 1 || list[0].ID != s.ID || list[0].PID != s.PID || !list[0].Running || len(list[0].Containers) != 2 {
		t.Fatalf("adopted %+v, want %+v", list, s)
	}
	if list[0].Labels["test"] != "yes" || list[0].Name != s.Name || !list[0].Created.Equal(s.Created) && list[0].Created.Sub(s.Created).Abs() > time.Second {
		t.Errorf("adopted %+v, want %+v", list[0], s)
	}
	for _, c := range list[0].Containers {
		switch {
		case c.ID == running && c.State == runtime.Running && c.Labels["which"] == "a" && c.PID != 0:
		case c.ID == ended && c.State == runtime.Exited && c.ExitCode == 4:
		default:
			t.Errorf("adopted container %+v", c)
		}
	}
	if labelled, err := next.List(f.ctx, map[string]string{"test": "yes"}); err != nil || !reflect.DeepEqual(labelled, list) {
		t.Errorf("by its label there is %+v, %v", labelled, err)
	}
	if others, err := next.List(f.ctx, map[string]string{"test": "no"}); err != nil || len(others) != 0 {
		t.Errorf("by another label there is %+v, %v", others, err)
	}
	third, err := next.CreateContainer(f.ctx, s.ID, f.spec("c"))
	f.must("create in an adopted sandbox", err)
	f.must("start", next.StartContainer(f.ctx, third))
	f.must("stop", next.StopContainer(f.ctx, f.listening(running), 5*time.Second))
	if c := f.container(s, running); c.State != runtime.Exited {
		t.Errorf("the first connection sees %+v", c)
	}
}

func testOwners(t *testing.T, f *fixture) {
	mine := f.sandbox("pod")
	other := f.Connect(t, f.owner+"-2")
	theirs, err := other.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("theirs")})
	f.must("run", err)
	defer func() { f.must("remove", other.RemoveSandbox(f.ctx, theirs.ID)) }()
	for _, c := range []struct {
		rt   runtime.Runtime
		want string
	}{{f.rt, mine.ID}, {other, theirs.ID}} {
		list, err := c.rt.List(f.ctx, nil)
		f.must("list", err)
		if len(list) != 1 || list[0].ID != c.want {
			t.Errorf("an owner sees %+v, want only %s", list, c.want)
		}
	}
}

func testConcurrent(t *testing.T, f *fixture) {
	const pods = 10
	errs := make(chan error, pods)
	began := time.Now()
	for i := range pods {
		go func() {
			name := string(rune('a' + i))
			s, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name(name)})
			if err != nil {
				errs <- err
				return
			}
			id, err := f.rt.CreateContainer(f.ctx, s.ID, f.spec(name+"-app"))
			if err == nil {
				err = f.rt.StartContainer(f.ctx, id)
			}
			errs <- err
		}()
	}
	for range pods {
		f.must("start a pod", <-errs)
	}
	t.Logf("%d pods in %s", pods, time.Since(began).Round(time.Millisecond))
	list, err := f.rt.List(f.ctx, nil)
	f.must("list", err)
	pids := map[int]bool{}
	for _, s := range list {
		if !s.Running || len(s.Containers) != 1 || s.Containers[0].State != runtime.Running {
			t.Errorf("sandbox is %+v", s)
		}
		pids[s.PID] = true
	}
	if len(pids) != pods {
		t.Errorf("%d sandboxes run, want %d", len(pids), pods)
	}
	for _, s := range list {
		go func() { errs <- f.rt.RemoveSandbox(f.ctx, s.ID) }()
	}
	for range list {
		f.must("remove a pod", <-errs)
	}
}

func testCancelled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.rt.RunSandbox(ctx, runtime.SandboxSpec{Name: f.name("never")})
	f.wantErr("run", err, context.Canceled)
	_, err = f.rt.List(ctx, nil)
	f.wantErr("list", err, context.Canceled)
	list, err := f.rt.List(f.ctx, nil)
	f.must("list", err)
	if slices.ContainsFunc(list, func(s runtime.Sandbox) bool { return s.Name == f.name("never") }) {
		t.Error("a cancelled call left a sandbox behind")
	}
}

func testUpdate(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "run")
	spec.MemoryLimit, spec.CPUQuota = 64<<20, 50_000
	id := f.start(s, spec)
	f.must("update", f.rt.UpdateContainer(f.ctx, id, runtime.Resources{CPUShares: 512, CPUQuota: 20_000, MemoryLimit: 96 << 20}))
	f.must("update to unbounded", f.rt.UpdateContainer(f.ctx, id, runtime.Resources{CPUShares: 2}))
	if c := f.container(s, id); c.State != runtime.Running {
		t.Errorf("an updated container is %+v", c)
	}
	if err := f.rt.UpdateContainer(f.ctx, "nosuch", runtime.Resources{CPUShares: 2}); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("update of nothing: %v", err)
	}
	f.must("update the sandbox", f.rt.UpdateSandbox(f.ctx, s, runtime.Resources{CPUShares: 512}))
	f.must("stop", f.rt.StopSandbox(f.ctx, s.ID))
	f.wantErr("update of a sandbox that does not run", f.rt.UpdateSandbox(f.ctx, s, runtime.Resources{CPUShares: 2}), runtime.ErrNotFound)
}
