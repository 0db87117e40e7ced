// Package images looks after the images of a peer: it pulls them, at most so many at
// a time and each once for all who wait for it, remembers who may use what was
// pulled with a login, and frees their space when the disk fills up.
//
// What was loaded by hand is not its business: it is everybody's and is never taken.
// Pull policies, backoff and what the user is told are package node's, which calls it.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Engine is what a manager needs of the runtime.
type Engine interface {
	Image(ctx context.Context, ref string) (runtime.Image, error)
	Images(ctx context.Context) ([]runtime.Image, error)
	PullImage(ctx context.Context, ref string, auth *runtime.RegistryAuth) (runtime.Image, error)
	RemoveImage(ctx context.Context, id string) error
	LoadImage(ctx context.Context, archive io.Reader) ([]string, error)
}

// Disk is the file system of the images, in bytes.
type Disk struct{ Total, Free int64 }

// Config is what a manager needs. It is copied.
type Config struct {
	Engine Engine
	// File is where the manager remembers what it pulled.
	File string
	// Disk measures where images are kept.
	Disk func() (Disk, error)
	// Named are the images that pods bound here name; they are not removed.
	Named func() []string
	// Changed is called when List may have changed. nil: nobody wants to know.
	Changed func()
	// Short is called when the disk stays too full because no more can be removed. nil: only the log tells.
	Short  func(message string)
	Policy Policy
	Logger *slog.Logger
}

// Policy is set by the user.
type Policy struct {
	// MaxPulls at once; 1: one after the other; 0: 3, for more would share the same uplink
	// and the same SD card.
	MaxPulls int
	// High and Low are percent of the disk: at High images are removed until Low. 0: 85
	// and 80, as in kubelet. A High of 100 turns that off.
	High, Low int
	// MinAge is how long an image is kept after it was pulled or last used; 0: 2 min, as in kubelet.
	MinAge time.Duration
	// MaxAge is after which time without use an image is removed, however full the disk is; 0: never.
	MaxAge time.Duration
	// Pinned are names of images that are never removed; a * stands for any characters.
	Pinned []string
}

// WithDefaults is the policy with its zero fields filled in, or why it makes no sense.
func (p Policy) WithDefaults() (Policy, error) {
	if p.MaxPulls == 0 {
		p.MaxPulls = 3
	}
	if p.High == 0 {
		p.High = 85
	}
	if p.Low == 0 {
		p.Low = min(80, p.High)
	}
	if p.MinAge == 0 {
		p.MinAge = 2 * time.Minute
	}
	switch {
	case p.MaxPulls < 0:
		return p, fmt.Errorf("%d pulls at once: it has to be at least 1", p.MaxPulls)
	case p.High < 0 || p.High > 100 || p.Low < 0 || p.Low > p.High:
		return p, fmt.Errorf("images are removed at %d %% until %d %%: they have to be percent, the second not above the first", p.High, p.Low)
	case p.MinAge < 0 || p.MaxAge < 0:
		return p, errors.New("the age of an image is negative")
	case p.MaxAge > 0 && p.MaxAge < p.MinAge:
		return p, fmt.Errorf("images are removed after %s without use, and kept for %s: the first has to be longer", p.MaxAge, p.MinAge)
	}
	return p, nil
}

// Manager looks after the images of one peer. All methods may be called concurrently.
type Manager struct {
	cfg    Config
	slots  chan struct{}  // a token for each pull that may run
	saving sync.Mutex     // held while File is written
	left   map[string]int // pulls that the last daemon ended in, by reference; of recover alone

	mu      sync.Mutex
	book    book
	seen    map[string]seen // by reference
	flights map[string]*flight
	list    []runtime.Image
	since   time.Time // when Run began
	short   bool      // the last collection did not free enough
}

type seen struct {
	runtime.Image
	at time.Time
}

// New reads what a former manager remembered. It has no other effect.
func New(cfg Config) (*Manager, error) {
	var err error
	if cfg.Policy, err = cfg.Policy.WithDefaults(); err != nil {
		return nil, fmt.Errorf("configure images: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m := &Manager{cfg: cfg, slots: make(chan struct{}, cfg.Policy.MaxPulls), seen: map[string]seen{}, flights: map[string]*flight{}}
	if m.book, err = readBook(cfg.File); err != nil {
		// Images that were pulled count as loaded by hand then: that takes space, but no image away.
		cfg.Logger.Warn("what was pulled is forgotten", "error", err)
	}
	m.left = maps.Clone(m.book.Pulling)
	return m, nil
}

// callTimeout bounds a call of the engine other than a pull or a load: an engine that hangs
// must not hold up the agent, which has pods to evict from a full disk.
const callTimeout = 2 * time.Minute

// fresh is for how long what the engine said of a local image is taken for true: so
// it is not asked by every replica that starts.
const fresh = 5 * time.Second

// Lookup returns a local image by its reference, runtime.ErrNotFound if it is not here.
func (m *Manager) Lookup(ctx context.Context, ref string) (runtime.Image, error) {
	m.mu.Lock()
	have, ok := m.seen[ref]
	m.mu.Unlock()
	if ok && time.Since(have.at) < fresh {
		return have.Image, nil
	}
	image, err := m.cfg.Engine.Image(ctx, ref)
	m.mu.Lock()
	defer m.mu.Unlock()
	for ref, s := range m.seen {
		if time.Since(s.at) >= fresh {
			delete(m.seen, ref)
		}
	}
	if err == nil {
		m.seen[ref] = seen{image, time.Now()}
		m.book.use(image.ID, time.Now())
	}
	return image, err
}

// Forget makes the next Lookup ask the engine.
func (m *Manager) Forget(ref string) {
	m.mu.Lock()
	delete(m.seen, ref)
	m.mu.Unlock()
}

// Load reads an archive that a person brought, and returns the names it had. Its image is
// from then on everybody's and stays.
func (m *Manager) Load(ctx context.Context, archive io.Reader) ([]string, error) {
	names, err := m.cfg.Engine.LoadImage(ctx, archive)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	clear(m.seen)
	m.mu.Unlock()
	for _, name := range names {
		image, err := m.cfg.Engine.Image(ctx, name)
		if err != nil {
			return names, fmt.Errorf("look at what was loaded: %w", err)
		}
		m.mu.Lock()
		changed := m.book.drop(image.ID)
		m.mu.Unlock()
		if changed {
			m.save()
		}
	}
	m.refresh(ctx)
	return names, nil
}

// Pulled tells whether an image, by its id, was pulled by this manager, and not loaded by hand.
func (m *Manager) Pulled(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.book.Images[id] != nil
}

// List returns the images that are here, as last seen, the largest first.
func (m *Manager) List() []runtime.Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list
}

// Reread is called when images have gone or come behind the manager's back.
func (m *Manager) Reread(ctx context.Context) {
	m.mu.Lock()
	clear(m.seen)
	m.mu.Unlock()
	m.refresh(ctx)
}

// refresh looks at what is here, and tells if that changed.
func (m *Manager) refresh(ctx context.Context) {
	if _, err := m.look(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, runtime.ErrUnavailable) {
		m.cfg.Logger.Warn("look at images", "error", err)
	}
}

// look lists what is here, notes what is in use, and forgets what is gone.
func (m *Manager) look(ctx context.Context) ([]runtime.Image, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	all, err := m.cfg.Engine.Images(call)
	cancel()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b runtime.Image) int {
		switch {
		case a.Size > b.Size:
			return -1
		case a.Size < b.Size:
			return 1
		}
		return 0
	})
	named := m.cfg.Named()
	m.mu.Lock()
	changed := !slices.EqualFunc(m.list, all, sameImage)
	m.list = all
	now := time.Now()
	m.book.believe(now)
	for i := range all {
		if all[i].Containers > 0 || names(named, &all[i]) {
			m.book.use(all[i].ID, now)
		}
	}
	gone := m.book.keep(all)
	m.mu.Unlock()
	if gone {
		m.save()
	}
	if changed && m.cfg.Changed != nil {
		m.cfg.Changed()
	}
	return all, nil
}

func sameImage(a, b runtime.Image) bool {
	return a.ID == b.ID && a.Size == b.Size && slices.Equal(a.Names, b.Names) && slices.Equal(a.Digests, b.Digests)
}
