package probe

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Kind names a probe as events do.
type Kind string

const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Verdict is what the probes of a container say together.
type Verdict struct {
	Started bool // the startup probe passed, or there is none
	Ready   bool // and the readiness probe passes, or there is none
	// Failed is the probe that asks for a restart, empty if none does; it does not go away.
	Failed Kind
}

// Config is one container to probe.
type Config struct {
	Container    *v1.Container
	StartedAt    time.Time // initial delays count from here
	AlreadyReady bool      // it was before this daemon began to look, so it is until a probe says no
	// Once does one probe and says whether it passed.
	Once func(ctx context.Context, p *v1.Probe) (ok bool, message string)
	// Changed is called after the verdict changed; Missed after each failed probe. Both
	// may be called from several goroutines.
	Changed func()
	Missed  func(kind Kind, message string)
}

// Set runs the probes of one container, from New until Stop.
type Set struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	verdict Verdict
}

// New starts probing. It ends with ctx or Stop.
func New(ctx context.Context, cfg Config) *Set {
	ctx, cancel := context.WithCancel(ctx)
	s := &Set{cfg: cfg, cancel: cancel}
	c := cfg.Container
	s.verdict.Ready = c.ReadinessProbe == nil || cfg.AlreadyReady
	s.verdict.Started = c.StartupProbe == nil || cfg.AlreadyReady
	if !s.verdict.Started {
		s.verdict.Ready = false
		s.wg.Go(func() { s.startup(ctx) })
	} else {
		s.others(ctx)
	}
	return s
}

// Verdict is the present one.
func (s *Set) Verdict() Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verdict
}

// Stop ends probing and waits until no probe runs any more.
func (s *Set) Stop() {
	s.cancel()
	s.wg.Wait()
}

// Cancel ends probing without waiting; callbacks may still come once.
func (s *Set) Cancel() { s.cancel() }

func (s *Set) change(f func(v *Verdict)) {
	s.mu.Lock()
	before := s.verdict
	f(&s.verdict)
	changed := s.verdict != before
	s.mu.Unlock()
	if changed {
		s.cfg.Changed()
	}
}

func (s *Set) startup(ctx context.Context) {
	s.loop(ctx, Startup, s.cfg.Container.StartupProbe, false, func(ok bool) (goOn bool) {
		if ok {
			s.change(func(v *Verdict) { v.Started, v.Ready = true, s.cfg.Container.ReadinessProbe == nil })
			s.others(ctx)
		} else {
			s.change(func(v *Verdict) { v.Failed = Startup })
		}
		return false
	})
}

func (s *Set) others(ctx context.Context) {
	c := s.cfg.Container
	if c.LivenessProbe != nil {
		s.wg.Go(func() {
			s.loop(ctx, Liveness, c.LivenessProbe, true, func(ok bool) bool {
				if !ok {
					s.change(func(v *Verdict) { v.Failed = Liveness })
				}
				return ok
			})
		})
	}
	if c.ReadinessProbe != nil {
		s.wg.Go(func() {
			s.loop(ctx, Readiness, c.ReadinessProbe, s.cfg.AlreadyReady, func(ok bool) bool {
				s.change(func(v *Verdict) { v.Ready = ok })
				return true
			})
		})
	}
}

// firstTries is when a container that is not ready yet is asked again, doubling up
// to the period: most programs answer some 100 ms after they start, and a kubelet's
// users would wait a whole period for that.
const firstTries = 100 * time.Millisecond

// loop probes once a period, a readiness probe that never passed more often, and calls settled when as many probes in a row as its
// threshold demands contradict or, at first, confirm what was believed.
func (s *Set) loop(ctx context.Context, kind Kind, p *v1.Probe, believed bool, settled func(ok bool) (goOn bool)) {
	initial := time.Duration(p.InitialDelaySeconds) * time.Second
	delay := min(initial-time.Since(s.cfg.StartedAt), initial) // it was started in the future if the clock was set back since
	period := max(time.Duration(p.PeriodSeconds)*time.Second, time.Second)
	timer := time.NewTimer(max(delay, 0))
	defer timer.Stop()
	row, last := 0, false
	next := period
	if kind == Readiness && !believed {
		next = firstTries
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(next) // at fixed intervals, however long the probe takes
		ok, message := s.cfg.Once(ctx, p)
		if ctx.Err() != nil {
			return
		}
		switch early := next < period; {
		case early && ok:
			next = period
			timer.Reset(period)
		case early: // a program that is still starting is no news
			next = min(2*next, period)
		case !ok:
			s.cfg.Missed(kind, message)
		}
		if ok != last || row == 0 {
			row, last = 0, ok
		}
		row++
		threshold := max(int(p.FailureThreshold), 1)
		if ok {
			threshold = max(int(p.SuccessThreshold), 1)
		}
		startupFailed := kind == Startup && !ok
		if row < threshold || ok == believed && !startupFailed {
			continue
		}
		believed = ok
		if !settled(ok) {
			return
		}
	}
}
