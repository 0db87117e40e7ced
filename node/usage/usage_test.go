package usage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// text is a window's usage in lines.
func text(w window) string {
	var b strings.Builder
	n := w.node()
	fmt.Fprintf(&b, "node %s %s window %s\n", n.Usage.Cpu(), n.Usage.Memory(), n.Window.Duration)
	for _, p := range w.pods() {
		fmt.Fprintf(&b, "%s/%s window %s", p.Namespace, p.Name, p.Window.Duration)
		for _, c := range p.Containers {
			fmt.Fprintf(&b, " %s %s %s", c.Name, c.Usage.Cpu(), c.Usage.Memory())
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestUsageOfAWindow(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	count := func(seconds float64, cpu time.Duration, memory int64) Counter {
		return Counter{At: at(seconds), CPU: cpu, Memory: memory}
	}
	pod := func(name string, containers ...Container) Pod {
		return Pod{Namespace: "ns", Name: name, Containers: containers}
	}
	before := &Sample{Node: count(0, 100*time.Second, 1<<30), Pods: []Pod{
		pod("old", Container{count(0.1, time.Second, 1<<20), "o1", "main", at(-100)}, Container{count(0.1, 0, 1<<20), "o2", "side", at(-100)}),
		pod("gone", Container{count(0.1, time.Second, 1<<20), "g1", "main", at(-100)}),
		pod("restarted", Container{count(0.1, time.Hour, 1<<20), "r1", "main", at(-100)}),
	}}
	after := &Sample{Node: count(20, 130*time.Second, 2<<30), Pods: []Pod{
		pod("old", Container{count(20.1, 3*time.Second, 3<<20), "o1", "main", at(-100)}, Container{count(20.1, time.Millisecond, 4096), "o2", "side", at(-100)}),
		pod("restarted", Container{count(20.1, 3*time.Second, 1<<20), "r2", "main", at(8.1)}),
		pod("young", Container{count(20.1, 3*time.Second, 1<<20), "y1", "main", at(15)}),
		pod("half", Container{count(20.1, 5*time.Second, 1<<20), "h1", "main", at(0.1)}, Container{count(20.1, time.Second, 1<<20), "h2", "side", at(19)}),
		pod("empty"),
	}}
	const want = `node 1500m 2Gi window 20s
ns/old window 20s main 100m 3Mi side 50u 4Ki
ns/restarted window 12s main 250m 1Mi
`
	if have := text(window{before, after}); have != want {
		t.Errorf("have\n%swant\n%s", have, want)
	}
}

// TestSampler asks at several times and looks at when samples were taken.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		taken := 0
		var fail error
		s := NewSampler(func(context.Context) (*Sample, error) {
			taken++
			return &Sample{Node: Counter{At: time.Now()}}, fail
		}, nil)
		for _, step := range []struct {
			wait  time.Duration
			want  string // begin and end of the window, seconds after the start
			taken int
		}{
			{0, "0 to 1", 2},                   // nothing is known: a window of its own
			{0, "0 to 1", 2},                   // at once again: the same
			{4 * time.Second, "0 to 1", 2},     //
			{1 * time.Second, "1 to 6", 3},     // since the last time
			{15 * time.Second, "6 to 21", 4},   //
			{2 * time.Minute, "141 to 142", 6}, // long ago: a window of its own
		} {
			time.Sleep(step.wait)
			w, err := s.window(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			have := fmt.Sprintf("%.0f to %.0f", w.before.Node.At.Sub(start).Seconds(), w.after.Node.At.Sub(start).Seconds())
			if have != step.want || taken != step.taken {
				t.Errorf("after %s: %s with %d samples, want %s with %d", step.wait, have, taken, step.want, step.taken)
			}
		}

		// Many at once share one window.
		time.Sleep(time.Hour)
		before := taken
		ends := make(chan error)
		for range 5 {
			go func() { _, err := s.window(t.Context()); ends <- err }()
		}
		for range 5 {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
		if taken != before+2 {
			t.Errorf("five at once took %d samples", taken-before)
		}

		// Who gives up holds nobody up, and an error is not kept.
		time.Sleep(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if _, err := s.window(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		fail = errors.New("no counters")
		if _, err := s.window(t.Context()); !errors.Is(err, fail) {
			t.Errorf("error is %v", err)
		}
		fail = nil
		if _, err := s.window(t.Context()); err != nil {
			t.Errorf("after an error: %v", err)
		}
	})
}

func TestMachine(t *testing.T) {
	proc := t.TempDir()
	file := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(proc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const stat, meminfo = "cpu  100 20 30 99999 88888 4 6 7777 50 0\ncpu0 1 1 1 1\n", "MemTotal: 1000 kB\nMemFree: 300 kB\nCached: 5 kB\nInactive(file): 200 kB\n"
	file("stat", stat)
	file("meminfo", meminfo)
	if c, err := Machine(proc); err != nil || c.CPU != 1600*time.Millisecond || c.Memory != 500<<10 {
		t.Errorf("counter is %+v, %v", c, err)
	}
	for _, bad := range []struct{ name, content, good string }{
		{"stat", "intr 1 2 3\n", stat}, {"stat", "cpu a b c d e f g\n", stat}, {"meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\n", meminfo}, {"meminfo", strings.Replace(meminfo, "300", "x", 1), meminfo},
	} {
		file(bad.name, bad.content)
		if c, err := Machine(proc); err == nil || !strings.Contains(err.Error(), bad.name) {
			t.Errorf("%s %q: %+v, %v", bad.name, bad.content, c, err)
		}
		file(bad.name, bad.good)
	}
	if c, err := Machine("/proc"); err != nil || c.CPU <= 0 || c.Memory <= 0 {
		t.Errorf("this machine: %+v, %v", c, err)
	}
}
