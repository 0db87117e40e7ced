package cluster

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// failureBurst wrong tokens from one address are taken before it has to
	// wait: a human who pastes the wrong line a few times is not locked out.
	failureBurst = 10
	// failureRefill gives one more try back.
	failureRefill = 6 * time.Second
	// failureTracked bounds the addresses remembered (about 100 bytes each).
	failureTracked = 1024
)

// failureLimit counts wrong tokens by address. Guessing 160 bits is hopeless at
// any rate; this keeps the log and the leader (each verification is a linearizable read) from being flooded.
// The zero value is ready.
type failureLimit struct {
	mu    sync.Mutex
	fails map[netip.Addr]failures
}

type failures struct {
	n    float64 // decays by one each failureRefill
	seen time.Time
}

func (f failures) at(now time.Time) float64 {
	return max(0, f.n-float64(now.Sub(f.seen))/float64(failureRefill))
}

func (l *failureLimit) allow(from netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fails[limitKey(from)].at(now) <= failureBurst-1
}

func (l *failureLimit) failed(from netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails == nil {
		l.fails = make(map[netip.Addr]failures)
	}
	from = limitKey(from)
	if _, ok := l.fails[from]; !ok && len(l.fails) >= failureTracked {
		l.evict(now)
	}
	l.fails[from] = failures{n: l.fails[from].at(now) + 1, seen: now}
}

// evict drops what has decayed, and the least guilty one if nothing has.
func (l *failureLimit) evict(now time.Time) {
	var least netip.Addr
	lowest := -1.0
	for a, f := range l.fails {
		n := f.at(now)
		if n == 0 {
			delete(l.fails, a)
		} else if lowest < 0 || n < lowest {
			least, lowest = a, n
		}
	}
	if len(l.fails) >= failureTracked {
		delete(l.fails, least)
	}
}

// limitKey takes an IPv6 /64 as one: a single host can have all of its addresses.
func limitKey(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
