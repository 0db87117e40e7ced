// Package runtimetest is the conformance suite of [runtime.Runtime]: what both
// runtime/podman and runtime/memory promise. Their tests call [Run].
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Subject is an engine under test.
type Subject struct {
	// Connect returns a new connection to the engine, as a restarted daemon has.
	Connect func(t *testing.T, owner string) runtime.Runtime
	// Image is a local image, fully named, whose entrypoint is package guest's Program, and
	// which has guest.Accounts if containers are real processes.
	Image   string
	Program string // its path in the image
	// Archive is a docker archive of an image called localhost/loaded:1, of the same program.
	Archive []byte
	// Removable is as Archive, of another image called localhost/removable:1.
	Removable []byte
	// Handler is an OCI runtime that the engine knows beside its default.
	Handler string
	// Ran says whether that OCI runtime has started the container. nil: it cannot be told.
	Ran func(id string) (bool, error)
	// Processes says that containers are real processes: with mounts, memory limits, uids.
	Processes bool
}

// waitTime is the longest that an engine may take for what it does on its own.
const waitTime = 20 * time.Second

// Run runs the suite, its parts in parallel: the engine has to stand that too.
func Run(t *testing.T, s Subject) {
	for name, f := range map[string]func(*testing.T, *fixture){
		"Info":             testInfo,
		"Lifecycle":        testLifecycle,
		"NotFound":         testNotFound,
		"Exists":           testExists,
		"Idempotent":       testIdempotent,
		"ExitCode":         testExitCode,
		"StopGrace":        testStopGrace,
		"DeadSandbox":      testDeadSandbox,
		"Adopt":            testAdopt,
		"Owners":           testOwners,
		"Events":           testEvents,
		"Exec":             testExec,
		"ExecCancel":       testExecCancel,
		"Attach":           testAttach,
		"AttachAgain":      testAttachAgain,
		"AttachOnce":       testAttachOnce,
		"Logs":             testLogs,
		"LogsFollow":       testLogsFollow,
		"LogsRotation":     testLogsRotation,
		"Images":           testImages,
		"RemoveImage":      testRemoveImage,
		"MountImage":       testMountImage,
		"Handler":          testHandler,
		"Usage":            testUsage,
		"Disk":             testDisk,
		"Update":           testUpdate,
		"User":             testUser,
		"ConcurrentPods":   testConcurrent,
		"CancelledContext": testCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, newFixture(t, s))
		})
	}
	if s.Processes {
		for name, f := range map[string]func(*testing.T, *fixture){"Mounts": testMounts, "OOM": testOOM, "SandboxLimit": testSandboxLimit, "Namespaces": testNamespaces, "Joined": testJoined, "UpdateLimit": testUpdateLimit,
			"Groups": testGroups, "OwnUsers": testOwnUsers, "Security": testSecurity, "Devices": testDevices, "Propagation": testPropagation} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f(t, newFixture(t, s))
			})
		}
	}
}

// fixture is one test's owner on the engine.
type fixture struct {
	Subject
	t     *testing.T
	ctx   context.Context
	owner string
	rt    runtime.Runtime
}

// newFixture removes what the test leaves behind.
func newFixture(t *testing.T, s Subject) *fixture {
	owner := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	f := &fixture{Subject: s, t: t, owner: owner, rt: s.Connect(t, owner)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	f.ctx = ctx
	t.Cleanup(func() {
		defer cancel()
		list, err := f.rt.List(ctx, nil)
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		for _, sandbox := range list {
			f.poll("sandbox "+sandbox.Name+" is removed", func() bool { // an engine under load may fail once
				err := f.rt.RemoveSandbox(ctx, sandbox.ID)
				if err != nil {
					t.Logf("clean up: %v", err)
				}
				return err == nil
			})
		}
	})
	return f
}

func (f *fixture) name(s string) string { return f.owner + "_" + s }

func (f *fixture) sandbox(name string) runtime.Sandbox {
	f.t.Helper()
	s, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name(name), Hostname: name, Labels: map[string]string{"test": "yes"}})
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) spec(name string, args ...string) runtime.ContainerSpec {
	return runtime.ContainerSpec{Name: f.name(name), Image: f.Image, Args: args, Labels: map[string]string{"which": name}}
}

// start creates and starts a container.
func (f *fixture) start(s runtime.Sandbox, spec runtime.ContainerSpec) string {
	f.t.Helper()
	id, err := f.rt.CreateContainer(f.ctx, s.ID, spec)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.rt.StartContainer(f.ctx, id); err != nil {
		f.t.Fatal(err)
	}
	return id
}

// listening waits until a container's program does: a stop signal before it has
// installed its handler would be lost.
func (f *fixture) listening(id string) string {
	f.t.Helper()
	f.poll("the program runs", func() bool {
		var out buffer
		f.must("logs", f.rt.Logs(f.ctx, id, runtime.LogOptions{}, &out, nil))
		return strings.HasPrefix(out.String(), "running\n")
	})
	return id
}

func (f *fixture) container(s runtime.Sandbox, id string) runtime.Container {
	f.t.Helper()
	now, err := f.rt.Inspect(f.ctx, s.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range now.Containers {
		if c.ID == id {
			return c
		}
	}
	f.t.Fatalf("container %s is not in its sandbox: %+v", id, now.Containers)
	return runtime.Container{}
}

// until polls until the container is in the state.
func (f *fixture) until(s runtime.Sandbox, id string, want runtime.State) runtime.Container {
	f.t.Helper()
	var c runtime.Container
	f.poll(fmt.Sprintf("container is %s", want), func() bool {
		c = f.container(s, id)
		return c.State == want
	})
	return c
}

func (f *fixture) poll(what string, done func() bool) {
	f.t.Helper()
	deadline := time.After(waitTime)
	for ticker := time.NewTicker(30 * time.Millisecond); ; {
		if done() {
			ticker.Stop()
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			f.t.Fatalf("not within %s: %s", waitTime, what)
		}
	}
}

func (f *fixture) wantErr(what string, err, want error) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Errorf("%s: error is %v, want %v", what, err, want)
	}
}

func (f *fixture) must(what string, err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
}

// buffer is a bytes.Buffer that may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	data []byte
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

func (b *buffer) lines() []string {
	return slices.DeleteFunc(strings.Split(b.String(), "\n"), func(s string) bool { return s == "" })
}
