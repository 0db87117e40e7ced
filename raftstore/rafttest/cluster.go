// Package rafttest runs several replicated stores in one process, on loopback and
// real disks, and cuts, kills and revives them. Tests of raftstore and of what stands
// on it use it.
package rafttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Patience is how long a test waits for what should come soon.
const Patience = 20 * time.Second

// Cluster is peers in this process, on loopback and real disks.
type Cluster struct {
	t     testing.TB
	Net   *Network
	Dir   string // each peer has a directory of its name in it
	tune  func(*raftstore.Config)
	mu    sync.Mutex
	peers map[string]*Peer
}

// Peer is one running store.
type Peer struct {
	*raftstore.Replicated
	Name string
	stop context.CancelFunc
	done chan struct{}
	err  error // of Run, after done
}

// NewCluster starts peers of these names, all voters, and waits until all know it. tune
// may change each one's configuration; nil: nothing. They end with the test.
func NewCluster(t testing.TB, tune func(*raftstore.Config), names ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Net: NewNetwork(), Dir: t.TempDir(), tune: tune, peers: map[string]*Peer{}}
	t.Cleanup(c.Stop)
	for i, name := range names {
		p := c.Start(name, i == 0)
		if i > 0 {
			c.Join(p)
		}
	}
	for _, p := range c.Peers() {
		Eventually(t, p.Name+" knows the leader and all voters", func() bool {
			s := p.Status()
			return s.Leader != "" && len(s.Voters) == len(names)
		})
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := p.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Config is how a peer of that name is set up.
func (c *Cluster) Config(name string) raftstore.Config {
	cfg := raftstore.Config{
		Name: name, Dir: filepath.Join(c.Dir, name), Transport: port{c.t, c.Net, name},
		Alive: c.Net.Alive,
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	return cfg
}

// Start starts a peer from its directory; the first of a cluster makes it.
func (c *Cluster) Start(name string, first bool) *Peer {
	c.t.Helper()
	s, err := raftstore.New(c.Config(name))
	if err != nil {
		c.t.Fatal(err)
	}
	if first {
		if err := s.Bootstrap(); err != nil {
			c.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Peer{Replicated: s, Name: name, stop: cancel, done: make(chan struct{})}
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

// Join makes a peer a voter.
func (c *Cluster) Join(p *Peer) {
	c.t.Helper()
	Eventually(c.t, p.Name+" votes", func() bool {
		err := c.Leader().Raft().AddVoter(raft.ServerID(p.Name), raft.ServerAddress(p.Name), 0, Patience).Error()
		if err != nil && !errors.Is(err, raft.ErrLeadershipLost) && !errors.Is(err, raft.ErrNotLeader) {
			c.t.Fatalf("add %s: %v", p.Name, err)
		}
		return err == nil // a slow machine is late for the first heartbeat of two
	})
}

// Leader waits for a peer that leads.
func (c *Cluster) Leader() *Peer {
	c.t.Helper()
	var lead *Peer
	Eventually(c.t, "there is a leader", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range c.peers {
			if p.IsLeader() && c.Net.Alive(p.Name) {
				lead = p
				return true
			}
		}
		return false
	})
	return lead
}

// Peers are those that run, by name.
func (c *Cluster) Peers() map[string]*Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.peers)
}

// Followers are all running peers but the leader.
func (c *Cluster) Followers() []*Peer {
	l := c.Leader()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Peer
	for _, p := range c.peers {
		if p != l {
			out = append(out, p)
		}
	}
	return out
}

// Halt stops a peer in order.
func (c *Cluster) Halt(p *Peer) {
	c.t.Helper()
	p.stop()
	if !p.stopped() {
		c.t.Fatalf("%s does not stop", p.Name)
	}
	if p.err != nil {
		c.t.Errorf("run %s: %v", p.Name, p.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers[p.Name] == p {
		delete(c.peers, p.Name)
	}
}

// stopped waits until a peer's Run has returned, but not for ever.
func (p *Peer) stopped() bool {
	select {
	case <-p.done:
		return true
	case <-time.After(3 * Patience):
		return false
	}
}

// Kill stops a peer without a word to the others, as far as one process can: it
// is cut off before it stops.
func (c *Cluster) Kill(p *Peer) {
	c.t.Helper()
	c.Net.SetCut(p.Name, true)
	c.Halt(p)
}

// Revive starts a killed peer again, from its disk.
func (c *Cluster) Revive(name string) *Peer {
	c.t.Helper()
	c.Net.SetCut(name, false)
	return c.Start(name, false)
}

// Stop stops every peer.
func (c *Cluster) Stop() {
	c.mu.Lock()
	peers := c.peers
	c.peers = map[string]*Peer{}
	c.mu.Unlock()
	for _, p := range peers {
		p.stop()
	}
	for _, p := range peers {
		if !p.stopped() {
			c.t.Errorf("%s does not stop", p.Name)
			continue
		}
		var damaged *raftstore.DamagedError
		if p.err != nil && !errors.As(p.err, &damaged) {
			c.t.Errorf("run %s: %v", p.Name, p.err)
		}
	}
}

// Agree waits until all running peers are at the same revision and checks that
// their states are equal.
func (c *Cluster) Agree() {
	c.t.Helper()
	l := c.Leader()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := l.Sync(ctx); err != nil {
		c.t.Fatal(err)
	}
	want, revision, err := l.Digest(0)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, p := range c.Peers() {
		Eventually(c.t, fmt.Sprintf("%s reaches revision %d", name, revision), func() bool { return p.Revision() >= revision })
		if got, _, err := p.Digest(revision); err != nil || got != want {
			c.t.Errorf("%s at revision %d has digest %s, %v; the leader %s", name, revision, got, err, want)
		}
	}
}

// Eventually polls until ok, or fails the test after [Patience].
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Calm is for tests of what a store says, not of how fast it elects: on a machine that
// compiles at the same time, 4 MiB under the race detector take longer than a lease.
func Calm(c *raftstore.Config) {
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLease = 2*time.Second, 2*time.Second, 2*time.Second
	c.LeaderlessGrace = 5 * time.Second
}
