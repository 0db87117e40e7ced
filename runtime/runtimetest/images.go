package runtimetest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
)

func testRemoveImage(t *testing.T, f *fixture) {
	_, err := f.rt.LoadImage(f.ctx, bytes.NewReader(f.Removable))
	f.must("load", err)
	img, err := f.rt.Image(f.ctx, "removable:1")
	f.must("look up", err)
	containers := func() int {
		t.Helper()
		list, err := f.rt.Images(f.ctx)
		f.must("list", err)
		i := slices.IndexFunc(list, func(i runtime.Image) bool { return i.ID == img.ID })
		if i < 0 {
			t.Fatalf("%s is not in %+v", img.ID, list)
		}
		return list[i].Containers
	}
	if n := containers(); n != 0 {
		t.Errorf("%d containers are made from it, want 0", n)
	}
	s := f.sandbox("pod")
	spec := f.spec("a")
	spec.Image = "removable:1"
	id, err := f.rt.CreateContainer(f.ctx, s.ID, spec)
	f.must("create", err)
	if n := containers(); n != 1 {
		t.Errorf("%d containers are made from it, want 1", n)
	}
	f.wantErr("remove an image in use", f.rt.RemoveImage(f.ctx, img.ID), runtime.ErrInUse)
	if have, err := f.rt.Image(f.ctx, "removable:1"); err != nil || have.ID != img.ID {
		t.Errorf("after that: %+v %v", have, err)
	}
	f.must("remove container", f.rt.RemoveContainer(f.ctx, id))
	f.must("remove", f.rt.RemoveImage(f.ctx, img.ID))
	f.must("remove again", f.rt.RemoveImage(f.ctx, img.ID))
	_, err = f.rt.Image(f.ctx, "removable:1")
	f.wantErr("look up what was removed", err, runtime.ErrNotFound)
}

func testMountImage(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	path, err := f.rt.MountImage(f.ctx, s.ID, f.Image)
	f.must("mount", err)
	again, err := f.rt.MountImage(f.ctx, s.ID, f.Image)
	f.must("mount again", err)
	if again != path {
		t.Errorf("mounted at %s, then at %s", path, again)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		t.Errorf("stat %s: %v", path, err)
	}
	if f.Processes {
		if _, err := os.Stat(filepath.Join(path, f.Program)); err != nil {
			t.Errorf("the image's program: %v", err)
		}
	}
	if now, err := f.rt.Inspect(f.ctx, s.ID); err != nil || len(now.Containers) != 0 {
		t.Errorf("the sandbox has %+v %v", now.Containers, err)
	}
	_, err = f.rt.MountImage(f.ctx, s.ID, "localhost/none:1")
	f.wantErr("mount what is not here", err, runtime.ErrNotFound)
	_, err = f.rt.MountImage(f.ctx, "none", f.Image)
	f.wantErr("mount for no sandbox", err, runtime.ErrNotFound)
	f.must("remove", f.rt.RemoveSandbox(f.ctx, s.ID))
	if f.Processes {
		if _, err := os.Stat(filepath.Join(path, f.Program)); !os.IsNotExist(err) {
			t.Errorf("after the sandbox: %v", err)
		}
	}
}

func testHandler(t *testing.T, f *fixture) {
	_, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("none"), Handler: "nosuch"})
	f.wantErr("run with an unknown handler", err, runtime.ErrNoHandler)
	list, err := f.rt.List(f.ctx, nil)
	f.must("list", err)
	if len(list) != 0 {
		t.Errorf("left behind: %+v", list)
	}
	s, err := f.rt.RunSandbox(f.ctx, runtime.SandboxSpec{Name: f.name("pod"), Handler: f.Handler})
	f.must("run", err)
	id := f.start(s, f.spec("a", "echo", "hello"))
	f.until(s, id, runtime.Exited)
	if now, err := f.rt.Inspect(f.ctx, s.ID); err != nil || len(now.Containers) != 1 {
		t.Errorf("the sandbox has %+v %v", now.Containers, err)
	}
	if f.Ran != nil {
		if ran, err := f.Ran(id); err != nil || !ran {
			t.Errorf("the OCI runtime %s did not start it: %v", f.Handler, err)
		}
	}
}
