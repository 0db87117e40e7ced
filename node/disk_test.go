package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/node/images"
	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman"
	"github.com/rundigitalplatform/rookery/test/image"
	"github.com/rundigitalplatform/rookery/test/registry"
)

// TestCollectOnPodman fills a small disk with real images.
func TestCollectOnPodman(t *testing.T) {
	reg := &registry.Registry{}
	archive := func(name string) *bytes.Buffer {
		t.Helper()
		data := make([]byte, 6<<20)
		if _, err := rand.Read(data); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := image.Write(&out, image.Spec{Names: []string{name}, Files: []image.File{{Path: "/f", Data: data}}, Entrypoint: []string{"/f"}}); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if _, err := reg.Push("team/"+name+":1", archive(name)); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(reg)
	defer server.Close()
	at := server.Listener.Addr().String()
	socket := startPodmanWith(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", at), 64<<20)
	connect := func(owner string) *podman.Runtime {
		t.Helper()
		rt, err := podman.New(podman.Config{Socket: socket, Owner: owner})
		if err != nil {
			t.Fatal(err)
		}
		return rt
	}
	rt, other, ctx := connect("mine"), connect("other"), t.Context()
	info, err := rt.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	measure := func() (images.Disk, error) {
		d, err := diskFree(info.StoreDir)
		return images.Disk{Total: d.total, Free: d.free}, err
	}
	cfg := images.Config{
		Engine: rt, File: t.TempDir() + "/images.json", Disk: measure,
		Named:  func() []string { return []string{at + "/team/b:1"} },
		Policy: images.Policy{MinAge: time.Nanosecond},
	}
	manager, err := images.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Load(ctx, archive("localhost/hand:1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if _, err := manager.Pull(ctx, at+"/team/"+name+":1", nil); err != nil {
			t.Fatal(err)
		}
	}
	// Somebody else's container, which never ran, is one all the same.
	s, err := other.RunSandbox(ctx, runtime.SandboxSpec{Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.CreateContainer(ctx, s.ID, runtime.ContainerSpec{Name: "other-c", Image: at + "/team/a:1"}); err != nil {
		t.Fatal(err)
	}
	disk, err := measure()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Policy.High = 100 - int(disk.Free*100/disk.Total)
	cfg.Policy.Low = cfg.Policy.High - 1
	if manager, err = images.New(cfg); err != nil { // another daemon, which remembers
		t.Fatal(err)
	}
	here := func(name string) bool {
		t.Helper()
		_, err := rt.Image(ctx, name)
		if err != nil && !errors.Is(err, runtime.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { manager.Run(run); close(done) }()
	eventually(t, 30*time.Second, "the least recently used image goes", func() bool { return !here(at + "/team/c:1") })
	stop()
	<-done
	left := func() (out []string) {
		for _, name := range []string{at + "/team/a:1", at + "/team/b:1", at + "/team/d:1", "localhost/hand:1"} {
			if here(name) {
				out = append(out, name)
			}
		}
		return out
	}
	if got, want := left(), []string{at + "/team/a:1", at + "/team/b:1", at + "/team/d:1", "localhost/hand:1"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	before, err := measure()
	if err != nil {
		t.Fatal(err)
	}
	freed, err := manager.Reclaim(ctx)
	if err != nil || freed < 6<<20 {
		t.Errorf("reclaimed %d %v", freed, err)
	}
	if got, want := left(), []string{at + "/team/a:1", at + "/team/b:1", "localhost/hand:1"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	if after, err := measure(); err != nil || after.Free-before.Free < 5<<20 {
		t.Errorf("the disk has %d bytes more %v", after.Free-before.Free, err)
	}
}
