package usage

import (
	"context"
	"time"
)

const (
	// fresh is how old a sample may be for nobody to take another: who looks twice in
	// that time sees the same, and a shorter window would show chance.
	fresh = 5 * time.Second
	// stale is how old a sample may be to begin a window: a longer one hides what is now.
	stale = time.Minute
	// first is the length of the window where no sample could begin it: long enough for
	// the kernel's ticks of 10 ms, short enough to wait for.
	first = time.Second
)

// Sampler takes samples for those who ask. Its methods may be called concurrently.
type Sampler struct {
	take    func(context.Context) (*Sample, error)
	measure func(context.Context) (*Files, error)

	turn          chan struct{} // holds one token; whoever has it may read and write the samples
	before, after *Sample
	files         *Files
	good          time.Time // until then
}

// NewSampler returns a sampler of what take returns, and of what measure does; nil: files
// are not measured. It takes nothing yet.
func NewSampler(take func(context.Context) (*Sample, error), measure func(context.Context) (*Files, error)) *Sampler {
	return &Sampler{take: take, measure: measure, turn: make(chan struct{}, 1)}
}

// window returns the present one. The first in a minute takes a second.
func (s *Sampler) window(ctx context.Context) (window, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return window{}, ctx.Err()
	}
	age := func() time.Duration { return time.Since(s.after.Node.At) }
	if s.before != nil && age() < fresh {
		return window{s.before, s.after}, nil
	}
	before := s.after
	if before == nil || age() > stale {
		var err error
		if before, err = s.take(ctx); err != nil {
			return window{}, err
		}
	}
	// A window that would be too short waits; the first one does.
	select {
	case <-time.After(first - time.Since(before.Node.At)):
	case <-ctx.Done():
		return window{}, ctx.Err()
	}
	after, err := s.take(ctx)
	if err != nil {
		return window{}, err
	}
	s.before, s.after = before, after
	return window{before, after}, nil
}
