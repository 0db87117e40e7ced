package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/storetest"
)

const patience = 20 * time.Second

// cluster is peers in this process, on loopback and real disks.
type cluster struct {
	t     testing.TB
	net   *network
	dir   string
	tune  func(*raftstore.Config)
	mu    sync.Mutex
	peers map[string]*peer
}

type peer struct {
	*raftstore.Replicated
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error // of Run, after done
}

func newCluster(t testing.TB, tune func(*raftstore.Config), names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newNetwork(), dir: t.TempDir(), tune: tune, peers: map[string]*peer{}}
	t.Cleanup(c.stopAll)
	for i, name := range names {
		p := c.start(name, i == 0)
		if i > 0 {
			c.join(p)
		}
	}
	for _, p := range c.peers {
		eventually(t, p.name+" knows the leader and all voters", func() bool {
			s := p.Status()
			return s.Leader != "" && len(s.Voters) == len(names)
		})
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *cluster) config(name string) raftstore.Config {
	cfg := raftstore.Config{
		Name: name, Dir: filepath.Join(c.dir, name), Transport: port{c.t, c.net, name},
		Alive: c.net.alive,
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	return cfg
}

func (c *cluster) start(name string, first bool) *peer {
	c.t.Helper()
	s, err := raftstore.New(c.config(name))
	if err != nil {
		c.t.Fatal(err)
	}
	if first {
		if err := s.Bootstrap(); err != nil {
			c.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &peer{Replicated: s, name: name, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = s.Run(ctx)
	}()
	c.mu.Lock()
	c.peers[name] = p
	c.mu.Unlock()
	select {
	case <-s.Started():
	case <-p.done:
		c.t.Fatalf("start %s: %v", name, p.err)
	}
	return p
}

func (c *cluster) join(p *peer) {
	c.t.Helper()
	l := c.leader()
	f := l.Raft().AddVoter(raft.ServerID(p.name), raft.ServerAddress(p.name), 0, patience)
	if err := f.Error(); err != nil {
		c.t.Fatalf("add %s: %v", p.name, err)
	}
}

// leader waits for a peer that leads.
func (c *cluster) leader() *peer {
	c.t.Helper()
	var lead *peer
	eventually(c.t, "there is a leader", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range c.peers {
			if p.IsLeader() && c.net.alive(p.name) {
				lead = p
				return true
			}
		}
		return false
	})
	return lead
}

func (c *cluster) followers() []*peer {
	l := c.leader()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*peer
	for _, p := range c.peers {
		if p != l {
			out = append(out, p)
		}
	}
	return out
}

// halt stops a peer in order.
func (c *cluster) halt(p *peer) {
	c.t.Helper()
	p.stop()
	<-p.done
	if p.err != nil {
		c.t.Errorf("run %s: %v", p.name, p.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers[p.name] == p {
		delete(c.peers, p.name)
	}
}

// kill stops a peer without a word to the others, as far as one process can: it
// is cut off before it stops.
func (c *cluster) kill(p *peer) {
	c.t.Helper()
	c.net.setCut(p.name, true)
	c.halt(p)
}

func (c *cluster) revive(name string) *peer {
	c.t.Helper()
	c.net.setCut(name, false)
	return c.start(name, false)
}

func (c *cluster) stopAll() {
	c.mu.Lock()
	peers := c.peers
	c.peers = map[string]*peer{}
	c.mu.Unlock()
	for _, p := range peers {
		p.stop()
	}
	for _, p := range peers {
		<-p.done
		var damaged *raftstore.DamagedError
		if p.err != nil && !errors.As(p.err, &damaged) {
			c.t.Errorf("run %s: %v", p.name, p.err)
		}
	}
}

// agree waits until all running peers are at the same revision and checks that
// their states are equal.
func (c *cluster) agree() {
	c.t.Helper()
	l := c.leader()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.Sync(ctx); err != nil {
		c.t.Fatal(err)
	}
	want, revision, err := l.Digest(0)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, p := range c.peers {
		eventually(c.t, fmt.Sprintf("%s reaches revision %d", name, revision), func() bool { return p.Revision() >= revision })
		if got, _, err := p.Digest(revision); err != nil || got != want {
			c.t.Errorf("%s at revision %d has digest %s, %v; the leader %s", name, revision, got, err, want)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// calm is for tests of what a store says, not of how fast it elects: on a machine that
// compiles at the same time, 4 MiB under the race detector take longer than a lease.
func calm(c *raftstore.Config) {
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLease = 2*time.Second, 2*time.Second, 2*time.Second
}

func TestReplicatedAlone(t *testing.T) {
	storetest.Run(t, func(t *testing.T) raftstore.Store {
		return newCluster(t, calm, "a").leader()
	})
}

func TestReplicatedFollower(t *testing.T) {
	storetest.Run(t, func(t *testing.T) raftstore.Store {
		return newCluster(t, calm, "a", "b", "c").followers()[0]
	})
}
