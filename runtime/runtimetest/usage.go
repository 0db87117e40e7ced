package runtimetest

import (
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// testUsage compares a container that computes with one that waits and one that has ended.
func testUsage(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	busy := f.listening(f.start(s, f.spec("busy", "burn", "16")))
	idle := f.listening(f.start(s, f.spec("idle")))
	ended := f.start(s, f.spec("ended", "exit", "0"))
	f.until(s, ended, runtime.Exited)

	usage := func() map[string]runtime.Usage {
		t.Helper()
		now, err := f.rt.Inspect(f.ctx, s.ID)
		f.must("inspect", err)
		all, err := f.rt.Usage(f.ctx, now)
		f.must("usage", err)
		return all
	}
	first := usage()
	if len(first) != 2 {
		t.Fatalf("usage is %v, want that of two containers", first)
	}
	var second map[string]runtime.Usage
	f.poll("the busy container computes", func() bool {
		second = usage()
		return second[busy].CPU-first[busy].CPU >= 200*time.Millisecond
	})
	for id, u := range second {
		if !u.At.After(first[id].At) || u.CPU < first[id].CPU || u.CPU == 0 {
			t.Errorf("container %s: %+v after %+v", id[:12], u, first[id])
		}
	}
	if spent := second[idle].CPU - first[idle].CPU; spent > (second[busy].CPU-first[busy].CPU)/2 {
		t.Errorf("the idle container computed for %s", spent)
	}
	if m := second[busy].Memory; m < 16<<20 || m > 64<<20 {
		t.Errorf("the busy container has %d bytes of memory, it took 16 MiB", m)
	}
	if n := second[busy].Processes; n < 1 || n > 100 {
		t.Errorf("the busy container has %d processes", n)
	}
	if m := second[idle].Memory; m <= 0 || m >= second[busy].Memory {
		t.Errorf("the idle container has %d bytes of memory, the busy one %d", m, second[busy].Memory)
	}

	f.must("stop", f.rt.StopContainer(f.ctx, busy, time.Second))
	if all := usage(); len(all) != 1 || all[idle].CPU == 0 {
		t.Errorf("after the busy container's end usage is %v", all)
	}
	last, err := f.rt.Inspect(f.ctx, s.ID)
	f.must("inspect", err)
	f.must("remove", f.rt.RemoveSandbox(f.ctx, s.ID))
	_, err = f.rt.Usage(f.ctx, last)
	f.wantErr("usage of a sandbox that is gone", err, runtime.ErrNotFound)
}

// testDisk: what a container prints and writes is counted, also when it has ended.
func testDisk(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	quiet := f.listening(f.start(s, f.spec("quiet")))
	loud := f.start(s, f.spec("loud", "lines", "4000"))
	disk := func() map[string]runtime.DiskUsage {
		t.Helper()
		now, err := f.rt.Inspect(f.ctx, s.ID)
		f.must("inspect", err)
		all, err := f.rt.Disk(f.ctx, now)
		f.must("disk", err)
		return all
	}
	const printed = 64 << 10 // at least, by 8000 lines of at least 6 bytes and what they are wrapped in
	var all map[string]runtime.DiskUsage
	f.poll("the log has grown", func() bool {
		all = disk()
		return all[loud].Logs.Bytes >= printed
	})
	if q := all[quiet]; len(all) != 2 || q.Logs.Bytes >= printed || q.Layer.Inodes < 1 || q.Layer.Bytes >= 1<<20 {
		t.Errorf("disk usage is %+v", all)
	}
	if !f.Processes {
		return
	}
	full := f.listening(f.start(s, f.spec("full", "fill", "/file", "8")))
	f.must("stop", f.rt.StopContainer(f.ctx, full, time.Second))
	f.poll("the file has its blocks", func() bool { // the file system may be late to say so
		all = disk()
		return all[full].Layer.Bytes >= 8<<20
	})
	if all[full].Layer.Bytes > 9<<20 || all[full].Layer.Inodes < all[quiet].Layer.Inodes+1 {
		t.Errorf("disk usage is %+v", all)
	}
}
