package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// clockJump is from when on a clock that was set is news: less is a time server's step.
const clockJump = 10 * time.Second

// watchClock tells what waits for a time of day that it has changed: tokens, whose end is
// one, are renewed. All else counts by a clock that is not set.
func (a *Agent) watchClock(ctx context.Context) {
	before := time.Now()
	err := clockSet(ctx, func() {
		now := time.Now()
		jump := now.Round(0).Sub(before.Round(0)) - now.Sub(before)
		before = now
		if jump.Abs() < clockJump {
			return
		}
		a.log.Info("the clock was set: tokens are renewed", "by", jump.Round(time.Second))
		a.renewTokens()
	})
	if err != nil {
		a.log.Warn("watch the clock", "error", err)
	}
}

func (a *Agent) renewTokens() {
	a.volumes.ForgetTokens()
	for _, w := range a.allWorkers() {
		w.mu.Lock()
		has := w.renew != nil
		w.mu.Unlock()
		if has {
			w.refresh()
		}
	}
}

// clockSet calls f after each time that the machine's clock was set, until ctx ends
// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). It costs nothing meanwhile.
func clockSet(ctx context.Context, f func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("create timer: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	never := unix.ItimerSpec{Value: unix.NsecToTimespec(math.MaxInt64)}
	for buf := make([]byte, 8); ; f() {
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("set timer: %w", err)
		}
		if _, err := timer.Read(buf); ctx.Err() != nil {
			return nil
		} else if err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("wait for timer: %w", err)
		}
	}
}
