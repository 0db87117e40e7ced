package node

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// active is since when a pod is active, by a clock that nobody sets: the one that counts
// from the machine's boot. It outlives the daemon, and means nothing after another boot.
type active struct {
	Boot  string        `json:"boot"`
	Since time.Duration `json:"since"` // from that boot
}

// uptime tells which boot of the machine this is, and how long ago it was.
func uptime() (boot string, since time.Duration) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "", 0 // a kernel without it: the time of day has to do
	}
	return strings.TrimSpace(string(hostFile("/proc/sys/kernel/random/boot_id"))), time.Duration(ts.Nano())
}

// beActive notes since when the pod is active, once in the daemon's life: from then on it
// counts by a clock that is not set. What a former daemon noted counts if the machine was
// not booted since; else the start that the API was told, unless that lies in the future,
// as where the clock was ahead then or begins in 1970 now. Called with mu.
func (w *worker) beActive(now time.Time) {
	if !w.activeSince.IsZero() {
		return
	}
	boot, since := w.a.uptime()
	var been time.Duration
	if was := w.wasActive; was != nil && was.Boot == boot && boot != "" {
		been = since - was.Since
	} else if start := w.pod.Status.StartTime; start != nil {
		been = now.Sub(start.Time)
	}
	been = max(been, 0)
	w.activeSince = now.Add(-been)
	if boot != "" {
		w.wasActive = &active{Boot: boot, Since: since - been}
	}
}

// deadline is when activeDeadlineSeconds are over; zero: never. Called with mu.
func (w *worker) deadline() time.Time {
	s := w.pod.Spec.ActiveDeadlineSeconds
	if s == nil {
		return time.Time{}
	}
	return w.activeSince.Add(time.Duration(*s) * time.Second)
}
