package cluster

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	// rejoinTick is how often the rejoiner looks while somebody is not alive.
	rejoinTick = 250 * time.Millisecond
	// rejoinIdle is how often it looks while all are, for records of peers that
	// were never met; a death wakes it.
	rejoinIdle = 5 * time.Second
	// rejoinFirst and rejoinMost bound the pause between two tries to reach a
	// peer that is not alive. The most is short, as a healed cable must be noticed
	// within two seconds however long it was cut, and cheap: one TCP SYN.
	rejoinFirst = 500 * time.Millisecond
	rejoinMost  = 1500 * time.Millisecond
	// maxRejoins at a time: a site of 50 that was cut in half is no storm.
	maxRejoins = 8
)

// rejoiner meets again the peers that are not alive. Memberlist forgets the dead
// after a while and never looks for them; after a partition both halves would stay apart.
type rejoiner struct {
	m    *Members
	next map[string]*rejoinState // touched by run's goroutine only
	sem  chan struct{}
	wg   sync.WaitGroup
}

type rejoinState struct {
	at    time.Time
	pause time.Duration
	busy  chan struct{} // closed when the try in flight is over; nil if none ever was
}

func newRejoiner(m *Members) *rejoiner {
	return &rejoiner{m: m, next: make(map[string]*rejoinState), sem: make(chan struct{}, maxRejoins)}
}

func (r *rejoiner) run(ctx context.Context) {
	defer r.wg.Wait()
	wake, cancel := r.m.Subscribe()
	defer cancel()
	for {
		pause := rejoinIdle
		if missing := r.missing(); len(missing) > 0 {
			r.look(ctx, missing, time.Now())
			pause = rejoinTick
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(pause):
		}
	}
}

func (r *rejoiner) look(ctx context.Context, missing map[string][]string, now time.Time) {
	for name, addrs := range missing {
		st := r.next[name]
		if st == nil {
			st = &rejoinState{pause: rejoinFirst}
			r.next[name] = st
		}
		if now.Before(st.at) || st.inFlight() {
			continue
		}
		select {
		case r.sem <- struct{}{}:
		default:
			return // all places are taken; the map's order gives everybody a turn
		}
		st.busy = make(chan struct{})
		st.at = now.Add(time.Duration(float64(st.pause) * (0.75 + rand.Float64()/2)))
		st.pause = min(2*st.pause, rejoinMost)
		done := st.busy
		r.wg.Go(func() {
			defer func() { <-r.sem; close(done) }()
			r.try(ctx, name, addrs)
		})
	}
}

func (s *rejoinState) inFlight() bool {
	if s.busy == nil {
		return false
	}
	select {
	case <-s.busy:
		return false
	default:
		return true
	}
}

// missing returns the addresses to try of every known peer that is not alive,
// and forgets the state of those that are.
func (r *rejoiner) missing() map[string][]string {
	out := make(map[string][]string)
	for _, p := range r.m.recorded() {
		if p.Name == r.m.cfg.Name {
			continue
		}
		r.m.table.learn(p.Name, p.Fingerprint, netip.AddrPortFrom(p.Address, p.Port), netip.AddrPortFrom(p.Address, p.GossipPort))
		out[p.Name] = append(out[p.Name], p.GossipAddr())
	}
	for _, x := range r.m.Snapshot() {
		switch {
		case x.Self:
		case x.Fingerprint != "" && r.m.cfg.Allowed != nil && !r.m.cfg.Allowed(x.Name, x.Fingerprint):
			delete(out, x.Name)
			r.m.table.forget(x.Name) // a removed one that still runs, too
		case x.State.Up():
			delete(out, x.Name)
			delete(r.next, x.Name)
		default:
			a := netip.AddrPortFrom(x.Address, x.GossipPort).String()
			if len(out[x.Name]) == 0 || out[x.Name][0] != a {
				out[x.Name] = append(out[x.Name], a)
			}
		}
	}
	return out
}

// try exchanges states with the peer. When both sides hold each other for
// dead, the first exchange only tells each of its own death; the refutations
// travel with the second.
func (r *rejoiner) try(ctx context.Context, name string, addrs []string) {
	for _, addr := range addrs {
		for range 3 {
			list := r.m.current()
			if list == nil || ctx.Err() != nil {
				return
			}
			if _, err := list.Join([]string{name + "/" + addr}); err != nil {
				r.m.cfg.Log.Debug("peer is not reachable", "peer", name, "address", addr, "error", err)
				break
			}
			if x, ok := r.m.table.get(name); ok && x.State.Up() {
				return
			}
		}
	}
}
