package images

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

func TestExcess(t *testing.T) {
	for _, tt := range []struct {
		free, total, want int64
		high, low         int
	}{
		{16, 100, 0, 85, 80},
		{15, 100, 5, 85, 80},
		{0, 100, 20, 85, 80},
		{120, 100, 0, 85, 80}, // more free than there is
		{0, 0, 0, 85, 80},
		{0, 100, 0, 100, 80}, // turned off
		{5, 100, 45, 50, 50},
	} {
		if got := (Policy{High: tt.high, Low: tt.low}).excess(Disk{tt.total, tt.free}); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}

// A disk that is 85 % full is freed until it is 80 % full, of what was not used for longest.
func TestCollect(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{Pinned: []string{"reg.test/c:*"}})
		run, stop := context.WithCancel(t.Context())
		defer stop()
		d.machine.AddImage(runtime.Image{ID: "sha256:hand", Names: []string{"reg.test/hand:1"}, Size: 5 * mib})
		d.get("a", "b", "c", "d", "e", "f", "g")
		go d.Run(run)
		s, err := d.rt.RunSandbox(t.Context(), runtime.SandboxSpec{Name: "s"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.rt.CreateContainer(t.Context(), s.ID, runtime.ContainerSpec{Name: "c", Image: "reg.test/a:1"}); err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		d.named = []string{"reg.test/b:1"}
		d.mu.Unlock()
		d.machine.AddImage(runtime.Image{ID: "sha256:d", Names: []string{"localhost/mine:1"}, Size: 10 * mib}) // somebody tagged it
		time.Sleep(time.Hour)
		if got := d.here(); got != "abcdefghand" { // 75 %
			t.Errorf("here is %s", got)
		}
		if _, err := d.Lookup(t.Context(), "reg.test/e:1"); err != nil { // used just now
			t.Fatal(err)
		}
		d.get("h") // 85 %
		time.Sleep(90 * time.Second)
		// f is the least recently used of e, f, g, h that may go: a runs, b is named, c is
		// pinned, d and hand are somebody's.
		if got := d.here(); got != "abcdeghhand" {
			t.Errorf("here is %s", got)
		}
		stop()
		synctest.Wait()
		if freed, err := d.Reclaim(t.Context()); err != nil || freed != 10*mib || d.here() != "abcdehhand" {
			t.Errorf("reclaimed %d %v, here is %s", freed, err, d.here()) // e and h were used in the last 2 min
		}
	})
}

// What cannot be freed is told, and not tried again and again.
func TestCollectTooLittle(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{})
		d.machine.AddImage(runtime.Image{ID: "sha256:hand", Names: []string{"reg.test/hand:1"}, Size: 90 * mib})
		run, stop := context.WithCancel(t.Context())
		go d.Run(run)
		time.Sleep(20*time.Minute + time.Second)
		stop()
		synctest.Wait()
		if len(d.short) != 5 || !strings.Contains(d.short[0], "(90% of 104857600 bytes used)") || !strings.Contains(d.short[0], "freed 0 bytes") {
			t.Errorf("told %q", d.short)
		}
		if d.here() != "hand" {
			t.Errorf("here is %s", d.here())
		}
	})
}

func TestMaxAge(t *testing.T) {
	bubble(t, func(t *testing.T, file string) {
		d := newDesk(t, file, Policy{MaxAge: 24 * time.Hour})
		run, stop := context.WithCancel(t.Context())
		defer func() { stop(); synctest.Wait() }()
		d.get("a", "b")
		go d.Run(run)
		time.Sleep(20 * time.Hour)
		if _, err := d.Lookup(t.Context(), "reg.test/b:1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4*time.Hour - time.Minute)
		if got := d.here(); got != "ab" {
			t.Errorf("here is %s", got)
		}
		time.Sleep(10 * time.Minute)
		if got := d.here(); got != "b" {
			t.Errorf("here is %s", got)
		}
	})
}

// Images that were pulled while the clock was wrong are as old as this daemon: neither
// young for a year, because it was ahead, nor too old, because it began in 1970.
func TestClockWasWrong(t *testing.T) {
	for _, by := range []time.Duration{365 * 24 * time.Hour, -30 * 365 * 24 * time.Hour} {
		bubble(t, func(t *testing.T, file string) {
			d := newDesk(t, file, Policy{MaxAge: 24 * time.Hour})
			d.get("a", "b")
			b, err := readBook(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range b.Images {
				e.Pulled, e.Used = e.Pulled.Add(by), e.Used.Add(by)
			}
			d.book = b
			d.save()
			d.restart()
			run, stop := context.WithCancel(t.Context())
			defer func() { stop(); synctest.Wait() }()
			go d.Run(run)
			time.Sleep(20 * time.Hour)
			if _, err := d.Lookup(t.Context(), "reg.test/b:1"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4*time.Hour - time.Minute)
			if got := d.here(); got != "ab" {
				t.Errorf("by %s: here is %s", by, got)
			}
			time.Sleep(10 * time.Minute)
			if got := d.here(); got != "b" {
				t.Errorf("by %s: here is %s", by, got)
			}
			d.get("c", "d", "e", "f", "g", "h", "i", "a") // 90 %
			time.Sleep(10 * time.Minute)
			if got := d.here(); got != "acdefghi" {
				t.Errorf("by %s: here is %s", by, got)
			}
		})
	}
}

func TestPins(t *testing.T) {
	image := runtime.Image{Names: []string{"docker.io/library/busybox:1"}, Digests: []string{"docker.io/library/busybox@sha256:00"}}
	for pattern, want := range map[string]bool{
		"busybox:1": true, "busybox": false, "docker.io/library/busybox:1": true, "docker.io/*": true, "*busybox*": true,
		"*@sha256:00": true, "*:2": false, "quay.io/*": false, "*": true, "docker.io/*/busybox:*": true, "": false,
	} {
		if got := (Policy{Pinned: []string{pattern}}).pins(&image); got != want {
			t.Errorf("%q: %t", pattern, got)
		}
	}
	if !(Policy{}).pins(&runtime.Image{Labels: map[string]string{LabelPinned: "true"}}) {
		t.Error("the label does not pin")
	}
}

func TestPolicyRefuses(t *testing.T) {
	for _, p := range []Policy{{MaxPulls: -1}, {High: 101}, {High: 50, Low: 60}, {MinAge: -1}, {MaxAge: time.Minute}} {
		if _, err := p.WithDefaults(); err == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if p, err := (Policy{High: 50}).WithDefaults(); err != nil || p.Low != 50 || p.MaxPulls != 3 {
		t.Errorf("%+v %v", p, err)
	}
}
