package node

import (
	"context"
	"errors"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Storage is what the engine keeps images and containers in, which a power loss can break.
type Storage interface {
	// Mend makes it usable, and returns what was broken. No pod is started meanwhile.
	Mend(ctx context.Context) ([]runtime.Damage, error)
	// Verify looks more closely, for as long as it takes, and changes nothing.
	Verify(ctx context.Context) ([]runtime.Damage, error)
}

const (
	// mendTime bounds how long pods wait: a stat of each file of many images on an SD card.
	mendTime = 5 * time.Minute
	// tellFor is for how long the user is told what cannot be seen to be cured.
	tellFor = 24 * time.Hour
)

// damage is what was found, when.
type damage struct {
	runtime.Damage
	at time.Time
}

// mend looks once at the engine's storage, before anything is started in it. The error is
// that the engine is not there: whoever lists next tries again.
func (a *Agent) mend(ctx context.Context) error {
	if a.cfg.Storage == nil {
		return nil
	}
	a.mending.Lock()
	defer a.mending.Unlock()
	if a.mended {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, mendTime)
	found, err := a.cfg.Storage.Mend(limited)
	cancel()
	a.tellDamage(found)
	if len(found) > 0 {
		a.images.Reread(ctx)
	}
	if errors.Is(err, runtime.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) && a.ping(ctx) != nil {
		return err
	}
	if err != nil {
		a.log.Error("mend the engine's storage", "error", err)
		a.events.Eventf(a.nodeRef(), v1.EventTypeWarning, "StorageNotMended", "The container engine's storage could not be mended: %v; the next start of rookery looks again", err)
	}
	a.mended = true
	a.spawn(func() {
		found, err := a.cfg.Storage.Verify(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("verify the engine's storage", "error", err)
		}
		a.tellDamage(found)
	})
	return nil
}

// tellDamage logs what was broken, makes it events of the Node, and keeps it for Damage.
func (a *Agent) tellDamage(found []runtime.Damage) {
	for _, d := range found {
		if d.Image != "" && a.images.Pulled(d.Image) {
			d.Cure = "it is pulled again when a pod needs it"
		} else if d.Image != "" {
			d.Cure = "it was loaded by hand: load it again with `rookery image load FILE`"
		}
		a.log.Error("the engine's storage was damaged", "what", d.What, "done", d.Done, "cure", d.Cure)
		a.events.Eventf(a.nodeRef(), v1.EventTypeWarning, "StorageDamaged", "%s; %s; %s", d.What, d.Done, d.Cure)
		a.mu.Lock()
		a.damages = append(a.damages, damage{d, time.Now()})
		a.mu.Unlock()
	}
}

// Damage is what a power loss broke in the engine's storage and what the user may have to
// do about it: images that are not here again, and anything else for a day.
func (a *Agent) Damage() (all []runtime.Damage) {
	here := map[string]bool{}
	for _, image := range a.images.List() {
		for _, name := range image.Names {
			here[name] = true
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.damages {
		missing := false
		for _, name := range d.Names {
			missing = missing || !here[name]
		}
		if missing || d.Image == "" && time.Since(d.at) < tellFor {
			all = append(all, d.Damage)
		}
	}
	return all
}

// lostImage is what is said of a local image that a pod needs and that was found damaged; else empty.
func (a *Agent) lostImage(ref string) string {
	for _, d := range a.Damage() {
		for _, name := range runtime.Names(ref) {
			for _, had := range d.Names {
				if name == had {
					return " (" + strings.TrimSpace(d.What+", and "+d.Done) + ")"
				}
			}
		}
	}
	return ""
}
