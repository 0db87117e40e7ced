package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/kubernetes/pkg/credentialprovider"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
	"github.com/rundigitalplatform/rookery/test/image"
)

// desk is a manager over an engine in memory, with a disk that is as full as its images.
type desk struct {
	*Manager
	t       *testing.T
	machine *memory.Machine
	rt      *memory.Runtime
	file    string
	policy  Policy

	mu      sync.Mutex
	pulling int
	most    int
	pulls   []string // reference and user
	fail    func(ref, user string) error
	slow    time.Duration
	linger  time.Duration // of an engine that needs it to give up
	named   []string
	total   int64
	short   []string
	changes int
}

const mib = 1 << 20

// newDesk has images of 10 MiB in its registry and a disk of 100 MiB.
func newDesk(t *testing.T, file string, policy Policy) *desk {
	d := &desk{t: t, file: file, policy: policy, total: 100 * mib}
	var registry []runtime.Image
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"} {
		registry = append(registry, runtime.Image{Names: []string{"reg.test/" + name + ":1"}, ID: "sha256:" + name, Size: 10 * mib})
	}
	d.machine = memory.New(memory.Config{Registry: registry, Pull: d.pull})
	t.Cleanup(d.machine.Close)
	d.rt = d.machine.Runtime("test")
	d.restart()
	return d
}

func (d *desk) restart() {
	d.t.Helper()
	var err error
	d.Manager, err = New(Config{
		Engine: d.rt, File: d.file, Policy: d.policy, Logger: slog.New(slog.NewTextHandler(d.t.Output(), nil)),
		Named: func() []string { d.mu.Lock(); defer d.mu.Unlock(); return d.named },
		Disk: func() (Disk, error) {
			list, err := d.rt.Images(context.Background())
			used := int64(0)
			for _, image := range list {
				used += image.Size
			}
			return Disk{d.total, d.total - used}, err
		},
		Short:   func(message string) { d.mu.Lock(); defer d.mu.Unlock(); d.short = append(d.short, message) },
		Changed: func() { d.mu.Lock(); defer d.mu.Unlock(); d.changes++ },
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) pull(ctx context.Context, ref string, auth *runtime.RegistryAuth) error {
	user := "nobody"
	if auth != nil {
		user = auth.Username
	}
	d.mu.Lock()
	d.pulling++
	d.most = max(d.most, d.pulling)
	d.pulls = append(d.pulls, strings.TrimPrefix(ref, "reg.test/")+" "+user)
	slow, linger, fail := d.slow, d.linger, d.fail
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.pulling--; d.mu.Unlock() }()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		time.Sleep(linger)
		return ctx.Err()
	}
	if fail != nil {
		return fail(ref, user)
	}
	return nil
}

// get pulls, and lets a second pass so that times differ.
func (d *desk) get(names ...string) {
	d.t.Helper()
	for _, name := range names {
		if _, err := d.Pull(d.t.Context(), "reg.test/"+name+":1", nil); err != nil {
			d.t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
}

// here are the ids of the images that are local, without their sha256:.
func (d *desk) here() string {
	d.t.Helper()
	list, err := d.rt.Images(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	var out []string
	for _, image := range list {
		out = append(out, strings.TrimPrefix(image.ID, "sha256:"))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

func login(user, uid string) []credentialprovider.TrackedAuthConfig {
	return []credentialprovider.TrackedAuthConfig{*credentialprovider.NewTrackedAuthConfig(
		&credentialprovider.AuthConfig{Username: user, Password: "p"},
		&credentialprovider.CredentialSource{Secret: &credentialprovider.SecretCoordinates{UID: uid, Namespace: "n", Name: "s" + uid}})}
}

func bubble(t *testing.T, f func(t *testing.T, dir string)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { f(t, filepath.Join(dir, "images.json")) })
}

func TestPullsAreSharedAndBounded(t *testing.T) {
	for most, want := range map[int]time.Duration{0: 3 * time.Second, 1: 7 * time.Second, 7: time.Second} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			bubble(t, func(t *testing.T, file string) {
				d := newDesk(t, file, Policy{MaxPulls: most})
				d.slow = time.Second
				began := time.Now()
				var all sync.WaitGroup
				for i := range 21 {
					all.Go(func() {
						p, err := d.Pull(t.Context(), "reg.test/"+string(rune('a'+i%7))+":1", nil)
						if err != nil || p.Took != time.Second || p.Size != 10*mib {
							t.Errorf("pulled %+v %v", p, err)
						}
					})
				}
				all.Wait()
				if took := time.Since(began); took != want || len(d.pulls) != 7 || d.most > max(most, 3) {
					t.Errorf("%d pulls, %d at once, took %s, want 7 in %s", len(d.pulls), d.most, took, want)
				}
				if d.List()[0].Size != 10*mib || len(d.List()) != 7 || d.changes == 0 {
					t.Errorf("list is %+v after %d changes", d.List(), d.changes)
				}
			})
		})
	}
}

// A pull goes on as long as somebody waits for it.
func TestPullIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.slow, d.linger = time.Minute, time.Second
		first, cancelFirst := context.WithCancel(t.Context())
		second, cancelSecond := context.WithCancel(t.Context())
		defer cancelSecond()
		errs := make(chan error, 2)
		for _, ctx := range []context.Context{first, second} {
			go func() {
				_, err := d.Pull(ctx, "reg.test/a:1", nil)
				errs <- err
			}()
			synctest.Wait()
		}
		cancelFirst()
		if err := <-errs; !errors.Is(err, context.Canceled) || d.pulling != 1 {
			t.Errorf("the first got %v, %d pulls go on", err, d.pulling)
		}
		cancelSecond()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the second got %v", err)
		}
		if d.pulling != 0 || d.here() != "" || len(d.book.Pulling) != 0 {
			t.Errorf("%d pulls go on, here is %q, book %+v", d.pulling, d.here(), d.book)
		}
	})
}

// Each login is tried, then none; what they all say is said once.
func TestLogins(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.fail = func(_, user string) error { return errors.New("unauthorized") }
		logins := append(login("u", "1"), login("v", "2")...)
		if _, err := d.Pull(t.Context(), "reg.test/a:1", logins); err == nil || err.Error() != "unauthorized" {
			t.Errorf("error is %v", err)
		}
		if got := strings.Join(d.pulls, ", "); got != "a:1 u, a:1 v, a:1 nobody" {
			t.Errorf("pulls: %s", got)
		}
		d.fail = func(_, user string) error { return errors.New("not for " + user) }
		if _, err := d.Pull(t.Context(), "reg.test/a:1", login("u", "1")); err == nil || err.Error() != "not for u; not for nobody" {
			t.Errorf("error is %v", err)
		}
	})
}

func TestAllowed(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.fail = func(_, user string) error {
			if user == "nobody" {
				return errors.New("unauthorized")
			}
			return nil
		}
		if _, err := d.Pull(t.Context(), "reg.test/a:1", login("u", "1")); err != nil {
			t.Fatal(err)
		}
		d.machine.AddImage(runtime.Image{ID: "sha256:hand", Names: []string{"reg.test/hand:1"}})
		d.fail = nil
		if _, err := d.Pull(t.Context(), "reg.test/b:1", login("u", "1")); err != nil { // anybody's, but that was not tried
			t.Fatal(err)
		}
		d.get("c")
		check := func() {
			t.Helper()
			for _, tt := range []struct {
				ref, id string
				logins  []credentialprovider.TrackedAuthConfig
				want    bool
			}{
				{"reg.test/a:1", "sha256:a", nil, false},
				{"reg.test/a:1", "sha256:a", login("u", "1"), true},
				{"reg.test/a:2", "sha256:a", login("u", "1"), true},  // another tag of the same repository
				{"reg.test/a:1", "sha256:a", login("u", "2"), true},  // another secret with the same login
				{"reg.test/a:1", "sha256:a", login("v", "1"), true},  // the same secret with another login
				{"reg.test/a:1", "sha256:a", login("v", "2"), false}, // neither
				{"reg.test/x:1", "sha256:a", login("u", "1"), false}, // another repository
				{"reg.test/b:1", "sha256:b", nil, false},
				{"reg.test/c:1", "sha256:c", nil, true},
				{"reg.test/hand:1", "sha256:hand", nil, true},
			} {
				if got := d.Allowed(tt.ref, tt.id, tt.logins); got != tt.want {
					t.Errorf("%s %s with %v: %t, want %t", tt.ref, tt.id, tt.logins, got, tt.want)
				}
			}
		}
		check()
		d.restart() // it is remembered
		check()
	})
}

// A pull that a power failure cut off may have brought an image: it is nobody's until asked.
func TestRecover(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.mu.Lock()
		d.slow = time.Hour
		d.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		go d.Pull(ctx, "reg.test/a:1", nil)
		synctest.Wait()
		d.machine.AddImage(runtime.Image{ID: "sha256:a", Names: []string{"reg.test/a:1"}})
		old := d.Manager
		d.restart()
		if d.Allowed("reg.test/a:1", "sha256:a", nil) {
			t.Error("allowed before it was recovered")
		}
		if err := d.recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d.Allowed("reg.test/a:1", "sha256:a", nil) || len(d.book.Pulling) != 0 {
			t.Errorf("allowed; book %+v", d.book)
		}
		_ = old
		cancel()
	})
}

// What this daemon pulls itself while the engine is not there yet is not the last one's.
func TestRecoverLeavesOwnPulls(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.mu.Lock()
		d.slow = time.Minute
		d.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); synctest.Wait() }()
		go d.Pull(ctx, "reg.test/a:1", nil)
		synctest.Wait()
		d.restart()
		for _, ref := range []string{"reg.test/a:1", "reg.test/b:1"} {
			go d.Pull(ctx, ref, nil)
		}
		synctest.Wait()
		for range 2 { // the second has nothing to do
			if err := d.recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.Manager.mu.Lock()
			if p := d.book.Pulling; len(p) != 2 || p["reg.test/a:1"] != 1 || p["reg.test/b:1"] != 1 || len(d.book.Images) != 0 {
				t.Errorf("book %+v", d.book)
			}
			d.Manager.mu.Unlock()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(d.book.Pulling) != 0 || !d.Pulled("sha256:a") || !d.Pulled("sha256:b") {
			t.Errorf("after its own pulls: book %+v", d.book)
		}
	})
}

func TestLoadedByHand(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		var archive bytes.Buffer
		if err := image.Write(&archive, image.Spec{Names: []string{"localhost/x:1"}}); err != nil {
			t.Fatal(err)
		}
		names, err := d.Load(t.Context(), &archive)
		if err != nil || !slices.Equal(names, []string{"localhost/x:1"}) || len(d.List()) != 1 {
			t.Errorf("loaded %q %v, list %+v", names, err, d.List())
		}
		time.Sleep(time.Hour)
		if freed, err := d.Reclaim(t.Context()); err != nil || freed != 0 || len(d.List()) != 1 {
			t.Errorf("freed %d %v", freed, err)
		}
	})
}
