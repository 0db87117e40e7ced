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

	"golang.org/x/sync/errgroup"

	"github.com/rundigitalplatform/rookery/node/images"
	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman"
	"github.com/rundigitalplatform/rookery/test/image"
	"github.com/rundigitalplatform/rookery/test/registry"
)

// randomImage is the archive of an image that has nothing in common with another.
func randomImage(t *testing.T, name string, size int, labels map[string]string) *bytes.Buffer {
	t.Helper()
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := image.Write(&out, image.Spec{Names: []string{name}, Files: []image.File{{Path: "/f", Data: data}}, Entrypoint: []string{"/f"}, Labels: labels}); err != nil {
		t.Fatal(err)
	}
	return &out
}

// TestPullsOnPodman counts what the registry is asked: as many images at once as may be, and
// each once, however many wait for it.
func TestPullsOnPodman(t *testing.T) {
	reg := &registry.Registry{}
	names := func(prefix string) (out []string) {
		for i := range 5 {
			out = append(out, fmt.Sprintf("%s/%d", prefix, i))
		}
		return out
	}
	for _, name := range slices.Concat(names("serial"), names("parallel"), []string{"once/a", "twice/a"}) {
		if _, err := reg.Push(name+":1", randomImage(t, name+":1", 10_000, nil)); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(reg)
	defer server.Close()
	at := server.Listener.Addr().String()
	socket := startPodmanWith(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", at), 0)
	rt, err := podman.New(podman.Config{Socket: socket, Owner: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	manager := func(most int) *images.Manager {
		t.Helper()
		m, err := images.New(images.Config{
			Engine: rt, File: t.TempDir() + "/images.json", Disk: func() (images.Disk, error) { return images.Disk{}, nil },
			Named: func() []string { return nil }, Policy: images.Policy{MaxPulls: most},
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	pull := func(m *images.Manager, names ...string) {
		t.Helper()
		var all errgroup.Group
		for _, name := range names {
			all.Go(func() error {
				_, err := m.Pull(t.Context(), at+"/"+name+":1", nil)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			t.Fatal(err)
		}
	}

	reg.Set("serial/", registry.Rule{Delay: 200 * time.Millisecond})
	pull(manager(1), names("serial")...)
	if most := reg.MostAtOnce(); most != 1 {
		t.Errorf("one by one, %d images were pulled at once", most)
	}
	reg.Set("parallel/", registry.Rule{Together: 3, Delay: 200 * time.Millisecond})
	pull(manager(3), names("parallel")...)
	if most := reg.MostAtOnce(); most != 3 {
		t.Errorf("three by three, %d images were pulled at once", most)
	}

	reg.Set("twice/", registry.Rule{Delay: 2 * time.Second}) // long enough for all to ask
	m := manager(3)
	pull(m, "once/a")
	pull(m, "twice/a", "twice/a", "twice/a")
	if one, many := reg.Count("once/a"), reg.Count("twice/a"); one == 0 || many != one {
		t.Errorf("for one who waits the registry was asked %d times, for three %d times", one, many)
	}
}

// TestCollectOnPodman fills a small disk with real images.
func TestCollectOnPodman(t *testing.T) {
	reg := &registry.Registry{}
	push := func(name string, labels map[string]string) {
		t.Helper()
		if _, err := reg.Push(name, randomImage(t, name, 6<<20, labels)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		push("team/"+name+":1", nil)
	}
	push("pinned/name:1", nil)
	push("team/label:1", map[string]string{images.LabelPinned: ""})
	server := httptest.NewServer(reg)
	defer server.Close()
	at := server.Listener.Addr().String()
	socket := startPodmanWith(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", at), 96<<20)
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
		Policy: images.Policy{MinAge: time.Nanosecond, Pinned: []string{at + "/pinned/*"}},
	}
	manager, err := images.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Load(ctx, randomImage(t, "localhost/hand:1", 6<<20, nil)); err != nil {
		t.Fatal(err)
	}
	// Those that are pinned would have to go first.
	for _, name := range []string{"pinned/name:1", "team/label:1", "team/a:1", "team/b:1", "team/c:1", "team/d:1"} {
		if _, err := manager.Pull(ctx, at+"/"+name, nil); err != nil {
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
		for _, name := range []string{at + "/pinned/name:1", at + "/team/label:1", at + "/team/a:1", at + "/team/b:1", at + "/team/d:1", "localhost/hand:1"} {
			if here(name) {
				out = append(out, name)
			}
		}
		return out
	}
	if got, want := left(), []string{at + "/pinned/name:1", at + "/team/label:1", at + "/team/a:1", at + "/team/b:1", at + "/team/d:1", "localhost/hand:1"}; !slices.Equal(got, want) {
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
	if got, want := left(), []string{at + "/pinned/name:1", at + "/team/label:1", at + "/team/a:1", at + "/team/b:1", "localhost/hand:1"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	if after, err := measure(); err != nil || after.Free-before.Free < 5<<20 {
		t.Errorf("the disk has %d bytes more %v", after.Free-before.Free, err)
	}
}
