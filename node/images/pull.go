package images

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"k8s.io/kubernetes/pkg/credentialprovider"

	"github.com/rundigitalplatform/rookery/runtime"
)

// pullTimeout is for a slow uplink; it bounds a registry that sends nothing at all.
const pullTimeout = 30 * time.Minute

// Pulled is what a pull brought.
type Pulled struct {
	runtime.Image
	Took time.Duration // the pull alone, without the wait for others
}

// flight is a pull under way. Its fields but done are under the manager's mu, or read
// after done is closed.
type flight struct {
	done    chan struct{}
	waiters int
	cancel  context.CancelFunc
	pulled  Pulled
	err     error
}

// Pull fetches an image from its registry. It tries the logins in order, then what the
// machine itself has. Who asks for the same with the same logins while that is under
// way shares it; it is given up when nobody waits any more, and who was the last waits
// until nothing of it is left. The error is the registry's.
func (m *Manager) Pull(ctx context.Context, ref string, logins []credentialprovider.TrackedAuthConfig) (Pulled, error) {
	key := ref
	for i := range logins {
		key += "\x00" + logins[i].AuthConfigHash + logins[i].Username + "\x00" + logins[i].Password
	}
	m.mu.Lock()
	f := m.flights[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		var run context.Context
		run, f.cancel = context.WithTimeout(context.WithoutCancel(ctx), pullTimeout)
		m.flights[key] = f
		go func() {
			pulled, err := m.pull(run, ref, logins)
			f.cancel()
			m.mu.Lock()
			if m.flights[key] == f {
				delete(m.flights, key)
			}
			f.pulled, f.err = pulled, err
			m.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiters++
	m.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		m.mu.Lock()
		f.waiters--
		last := f.waiters == 0
		if last && m.flights[key] == f {
			delete(m.flights, key) // who comes now begins anew
		}
		m.mu.Unlock()
		if last {
			f.cancel()
			<-f.done
		}
		return Pulled{}, ctx.Err()
	}
	return f.pulled, f.err
}

func (m *Manager) pull(ctx context.Context, ref string, logins []credentialprovider.TrackedAuthConfig) (Pulled, error) {
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return Pulled{}, ctx.Err()
	}
	before, err := m.cfg.Engine.Image(ctx, ref)
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return Pulled{}, err
	}
	m.mu.Lock()
	byHand := err == nil && m.book.Images[before.ID] == nil && m.book.Pulling[ref] == 0
	m.book.begin(ref)
	m.mu.Unlock()
	m.save()
	began := time.Now()
	image, login, err := m.try(ctx, ref, logins)
	took := time.Since(began)
	m.mu.Lock()
	m.book.end(ref)
	delete(m.seen, ref)
	if err == nil && !(byHand && image.ID == before.ID) {
		m.book.pulled(ref, image, login, time.Now())
	}
	m.mu.Unlock()
	m.save()
	if err != nil {
		return Pulled{}, err
	}
	m.refresh(ctx)
	return Pulled{image, took}, nil
}

// try pulls with each login and without one, and says which it was. Failures that
// all say the same are said once.
func (m *Manager) try(ctx context.Context, ref string, logins []credentialprovider.TrackedAuthConfig) (runtime.Image, *credentialprovider.TrackedAuthConfig, error) {
	var causes []string
	var last error
	for i := range len(logins) + 1 {
		var login *credentialprovider.TrackedAuthConfig
		var auth *runtime.RegistryAuth
		if i < len(logins) {
			login = &logins[i]
			auth = &runtime.RegistryAuth{Username: login.Username, Password: login.Password}
		}
		image, err := m.cfg.Engine.PullImage(ctx, ref, auth)
		if err == nil {
			return image, login, nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, runtime.ErrUnavailable) {
			return runtime.Image{}, nil, err
		}
		if text := strings.TrimSpace(err.Error()); !slices.Contains(causes, text) {
			causes = append(causes, text)
		}
	}
	if len(causes) == 1 {
		return runtime.Image{}, nil, last
	}
	return runtime.Image{}, nil, errors.New(strings.Join(causes, "; "))
}

// Allowed says whether a pod with these logins may use the local image without its
// registry being asked: it was loaded by hand, pulled without a login, or with one of
// these. As kubelet's policy NeverVerifyPreloadedImages.
func (m *Manager) Allowed(ref, id string, logins []credentialprovider.TrackedAuthConfig) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.book.allowed(ref, id, logins)
}

// recover takes what pulls had brought when the last daemon ended in their midst for
// pulled, by nobody knows whom.
func (m *Manager) recover(ctx context.Context) error {
	if len(m.left) == 0 {
		return nil
	}
	for ref, count := range m.left {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		image, err := m.cfg.Engine.Image(call, ref)
		cancel()
		if err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return err
		}
		m.mu.Lock()
		if err == nil && m.book.Images[image.ID] == nil {
			m.book.Images[image.ID] = &entry{Refs: []string{ref}, Access: map[string]*access{}, Pulled: time.Now(), Used: time.Now()}
		}
		for range count { // this daemon's own pulls of it go on
			m.book.end(ref)
		}
		m.mu.Unlock()
		delete(m.left, ref)
	}
	m.save()
	return nil
}
