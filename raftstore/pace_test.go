package raftstore_test

import (
	"sync"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// word is what gossip says of who lives.
type word struct {
	mu   sync.Mutex
	dead map[string]bool
	told []chan struct{}
}

func (w *word) alive(peer string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.dead[peer]
}

func (w *word) subscribe() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	ch := make(chan struct{}, 1)
	w.told = append(w.told, ch)
	return ch
}

func (w *word) say(peer string, alive bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead[peer] = !alive
	for _, ch := range w.told {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (w *word) tune(c *raftstore.Config) {
	c.Alive, c.Subscribe = w.alive, w.subscribe
	patient(c)
}

func heartbeatTimeout(p *rafttest.Peer) time.Duration {
	return p.Raft().ReloadableConfig().HeartbeatTimeout
}

func eventuallyRests(t *testing.T, c *rafttest.Cluster) {
	t.Helper()
	for _, p := range c.Peers() {
		rafttest.Eventually(t, p.Name+" rests", func() bool { return heartbeatTimeout(p) == 2*time.Second })
	}
}

func TestTimeoutsAreShortWithoutLeader(t *testing.T) {
	w := &word{dead: map[string]bool{}}
	c := rafttest.NewCluster(t, w.tune, "a", "b", "c")
	eventuallyRests(t, c)

	old := c.Leader()
	c.Kill(old)
	w.say(old.Name, false)
	for _, p := range c.Peers() {
		rafttest.Eventually(t, p.Name+" looks for a leader", func() bool {
			return heartbeatTimeout(p) == 800*time.Millisecond || p.Status().Leader != old.Name
		})
	}
	if _, err := write(c.Leader(), "k", "x"); err != nil {
		t.Error(err)
	}
	eventuallyRests(t, c) // the new leader lives
	c.Revive(old.Name)
	w.say(old.Name, true)
	eventuallyRests(t, c)
	c.Agree()
}

// Without gossip's word, heartbeats alone tell that the leader is gone.
func TestLeaderIsMissedWithoutWord(t *testing.T) {
	w := &word{dead: map[string]bool{}}
	c := rafttest.NewCluster(t, w.tune, "a", "b", "c")
	eventuallyRests(t, c)
	c.Kill(c.Leader())
	if _, err := write(c.Leader(), "k", "x"); err != nil {
		t.Error(err)
	}
}

// A leader that is heard is not replaced, whatever gossip says.
func TestFalseWordOfDeath(t *testing.T) {
	w := &word{dead: map[string]bool{}}
	calm := func(c *raftstore.Config) { // a pause of the machine is not what this is about
		w.tune(c)
		c.HeartbeatTimeout, c.LeaderLease = 1900*time.Millisecond, 1900*time.Millisecond
		c.ElectionTimeout = c.HeartbeatTimeout
	}
	c := rafttest.NewCluster(t, calm, "a", "b", "c")
	eventuallyRests(t, c)
	l := c.Leader()
	term := l.Status().Term
	w.say(l.Name, false)
	time.Sleep(3 * time.Second) // nothing happens, which cannot be waited for
	for _, p := range c.Peers() {
		if s := p.Status(); s.Term != term || s.Leader != l.Name {
			t.Errorf("%s: term %d with leader %q, was %d with %s", p.Name, s.Term, s.Leader, term, l.Name)
		}
		if got := heartbeatTimeout(p); got != 2*time.Second {
			t.Errorf("%s: looks for another leader after %s", p.Name, got)
		}
	}
}
