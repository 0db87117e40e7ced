package apiserver

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// queueTime is how long a request waits for its turn: a burst passes in that
	// time, a client that waits longer had better back off.
	queueTime = time.Second
	// queueLength of one user at most; the rest is told at once to come again.
	queueLength = 50
)

// turns shares a number of slots among users: the cheap part of API priority and
// fairness. No user holds more than half of them, and those who wait are served in
// turn, user by user, so that one who floods delays only itself.
type turns struct {
	share int // of one user

	mu      sync.Mutex
	free    int
	running map[string]int
	waiting map[string][]chan struct{} // closed when it is the request's turn
	next    []string                   // users who wait, the next first
}

func newTurns(slots int) *turns {
	return &turns{share: max(1, slots/2), free: slots, running: map[string]int{}, waiting: map[string][]chan struct{}{}}
}

// take waits for a slot. false: there is none within [queueTime], the queue is full,
// or ctx has ended. After true, give must be called.
func (t *turns) take(ctx context.Context, user string) bool {
	t.mu.Lock()
	if t.free > 0 && t.running[user] < t.share {
		t.free--
		t.running[user]++
		t.mu.Unlock()
		return true
	}
	if len(t.waiting[user]) >= queueLength {
		t.mu.Unlock()
		return false
	}
	turn := make(chan struct{})
	if len(t.waiting[user]) == 0 {
		t.next = append(t.next, user)
	}
	t.waiting[user] = append(t.waiting[user], turn)
	t.mu.Unlock()

	timeout := time.NewTimer(queueTime)
	defer timeout.Stop()
	select {
	case <-turn:
		return true
	case <-timeout.C:
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting[user], turn); i >= 0 {
		t.leave(user, i)
		return false
	}
	return true // its turn came just now
}

// give returns a slot.
func (t *turns) give(user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	if t.running[user]--; t.running[user] == 0 {
		delete(t.running, user)
	}
	for i, user := range t.next {
		if t.running[user] >= t.share {
			continue
		}
		t.free--
		t.running[user]++
		close(t.waiting[user][0])
		t.next = append(slices.Delete(t.next, i, i+1), user) // to the end
		t.leave(user, 0)
		return
	}
}

// leave takes the i-th request of a user out of the queue.
func (t *turns) leave(user string, i int) {
	if t.waiting[user] = slices.Delete(t.waiting[user], i, i+1); len(t.waiting[user]) > 0 {
		return
	}
	delete(t.waiting, user)
	t.next = slices.DeleteFunc(t.next, func(u string) bool { return u == user })
}
