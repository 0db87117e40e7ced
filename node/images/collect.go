package images

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// LabelPinned on an image keeps it from being removed, whatever its value.
const LabelPinned = "io.rookery.pinned"

const (
	// checkDisk is how often the disk is measured: a call of the kernel, no more.
	checkDisk = time.Minute
	// checkImages is how often the engine is asked what is here, as in kubelet, and how
	// soon another try is made to free a disk that nothing could be freed of.
	checkImages = 5 * time.Minute
)

// Run looks after the disk until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	m.mu.Lock()
	m.since = time.Now()
	m.mu.Unlock()
	recovered := false
	ticker := time.NewTicker(checkDisk)
	defer ticker.Stop()
	for due := time.Now(); ; {
		if !recovered {
			recovered = m.recover(ctx) == nil // otherwise the engine is not there yet
		}
		now := time.Now()
		if late := !now.Before(due); late || !m.stuck() && m.full() > 0 {
			if err := m.collect(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, runtime.ErrUnavailable) {
				m.cfg.Logger.Warn("free space of images", "error", err)
			}
			due = now.Add(checkImages)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// stuck: the last collection did not free enough.
func (m *Manager) stuck() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.short
}

// full is how many bytes have to be freed; 0: the disk is not too full.
func (m *Manager) full() int64 {
	disk, err := m.cfg.Disk()
	if err != nil {
		return 0 // nothing is known of it; the engine may not be there
	}
	return m.cfg.Policy.excess(disk)
}

// excess is how much has to go from the disk, by kubelet's count.
func (p Policy) excess(d Disk) int64 {
	free := min(d.Free, d.Total)
	if d.Total <= 0 || p.High >= 100 || 100-int(free*100/d.Total) < p.High {
		return 0
	}
	return d.Total*int64(100-p.Low)/100 - free
}

// collect removes what is too old, and what the disk has no room for.
func (m *Manager) collect(ctx context.Context) error {
	m.mu.Lock()
	aged := m.cfg.Policy.MaxAge > 0 && time.Since(m.since) > m.cfg.Policy.MaxAge
	m.mu.Unlock()
	if aged {
		old := func(c candidate) bool { return time.Since(c.used) > m.cfg.Policy.MaxAge }
		if _, err := m.remove(ctx, math.MaxInt64, old); err != nil {
			return err
		}
	}
	need := m.full()
	if need == 0 {
		m.setShort(false)
		_, err := m.look(ctx)
		return err
	}
	m.cfg.Logger.Info("the disk is nearly full, unused images are removed", "need", need)
	freed, err := m.remove(ctx, need, func(candidate) bool { return true })
	if err != nil {
		return err
	}
	m.setShort(freed < need)
	if freed < need && m.cfg.Short != nil {
		disk, err := m.cfg.Disk()
		if err != nil {
			return err
		}
		m.cfg.Short(fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %d bytes used). "+
			"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
			100-min(disk.Free, disk.Total)*100/max(disk.Total, 1), disk.Total, freed))
	}
	return nil
}

func (m *Manager) setShort(short bool) {
	m.mu.Lock()
	m.short = short
	m.mu.Unlock()
}

// Reclaim removes every image that may be removed, least recently used first, and returns
// how many bytes they had. It is for a disk under pressure, however full that is.
func (m *Manager) Reclaim(ctx context.Context) (freed int64, err error) {
	return m.remove(ctx, math.MaxInt64, func(candidate) bool { return true })
}

// remove removes images until so many bytes are free.
func (m *Manager) remove(ctx context.Context, need int64, want func(candidate) bool) (freed int64, err error) {
	all, err := m.look(ctx)
	if err != nil {
		return 0, err
	}
	named := m.cfg.Named()
	m.mu.Lock()
	order := m.candidates(all, named, time.Now())
	m.mu.Unlock()
	var errs []error
	removed := false
	for _, c := range order {
		if freed >= need {
			break
		}
		if !want(c) {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := m.cfg.Engine.RemoveImage(call, c.ID)
		late := call.Err() != nil
		cancel()
		if errors.Is(err, runtime.ErrInUse) {
			continue // since we looked
		}
		if err != nil {
			errs = append(errs, err)
			if late {
				break // the next would take as long
			}
			continue
		}
		m.cfg.Logger.Info("removed image", "id", c.ID, "names", c.Names, "size", c.Size, "used", c.used)
		freed += c.Size
		removed = true
	}
	if removed {
		m.mu.Lock()
		clear(m.seen)
		m.mu.Unlock()
		m.refresh(ctx)
	}
	return freed, errors.Join(errs...)
}

// candidate is an image that may be removed.
type candidate struct {
	runtime.Image
	used time.Time
}

// candidates are the images that may be removed, in order. Called with mu.
func (m *Manager) candidates(all []runtime.Image, named []string, now time.Time) []candidate {
	var out []candidate
	for i := range all {
		image, e := &all[i], m.book.Images[all[i].ID]
		switch {
		case e == nil, !e.owns(image): // loaded by hand, or named so
		case image.Containers > 0, names(named, image):
		case m.cfg.Policy.pins(image):
		case now.Sub(e.Pulled) < m.cfg.Policy.MinAge, now.Sub(e.Used) < m.cfg.Policy.MinAge:
		default:
			out = append(out, candidate{*image, e.Used})
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		return m.book.Images[a.ID].Pulled.Compare(m.book.Images[b.ID].Pulled)
	})
	return out
}

func (p Policy) pins(image *runtime.Image) bool {
	if _, ok := image.Labels[LabelPinned]; ok {
		return true
	}
	for _, pattern := range p.Pinned {
		for _, name := range append(slices.Clone(image.Names), image.Digests...) {
			if matches(pattern, name) || is(pattern, name) {
				return true
			}
		}
	}
	return false
}

// matches compares a name with a pattern in which each * stands for any characters.
func matches(pattern, name string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, head)
	for ok {
		if matches(rest, name) {
			return true
		}
		if name == "" {
			return false
		}
		name = name[1:]
	}
	return false
}
