package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rundigitalplatform/rookery/cluster"
)

// unheard is how long a peer that gossip has not met since this daemon started
// counts as alive: 3 s, in which a restarted daemon has met all that live. After
// that a cold-booted island balances to what it can reach.
const unheard = 3 * time.Second

// liveness is gossip's word on who lives, in a form that can be asked for every
// packet rule and DNS answer.
type liveness struct {
	self    string
	members *cluster.Members
	started time.Time
	dead    atomic.Pointer[map[string]bool]

	mu      sync.Mutex
	wakeups []chan struct{}
}

func newLiveness(self string, m *cluster.Members) *liveness {
	l := &liveness{self: self, members: m, started: time.Now()}
	l.dead.Store(&map[string]bool{})
	return l
}

// alive does not block. A name that was never heard of is alive: a Node may be there before gossip is.
func (l *liveness) alive(name string) bool { return !(*l.dead.Load())[name] }

// subscribe returns a channel that gets a value when answers of alive change.
func (l *liveness) subscribe() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := make(chan struct{}, 1)
	l.wakeups = append(l.wakeups, ch)
	return ch
}

// unsubscribe ends what subscribe began.
func (l *liveness) unsubscribe(ch <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeups = slices.DeleteFunc(l.wakeups, func(have chan struct{}) bool { return have == ch })
}

func (l *liveness) run(ctx context.Context) error {
	wake, cancel := l.members.Subscribe()
	defer cancel()
	settled := time.After(unheard)
	for {
		l.update()
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-settled:
		}
	}
}

func (l *liveness) update() {
	dead := map[string]bool{}
	for _, m := range l.members.Snapshot() {
		switch {
		case m.Name == l.self || m.State.Up():
		case m.State == cluster.StateUnknown && time.Since(l.started) < unheard:
		default:
			dead[m.Name] = true
		}
	}
	l.dead.Store(&dead)
	l.wake()
}

// wake has every subscriber look again.
func (l *liveness) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ch := range l.wakeups {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
