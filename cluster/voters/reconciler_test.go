package voters

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// group is real Raft servers in memory, with the reconciler on whoever leads.
type group struct {
	t       *testing.T
	servers map[string]*raft.Raft
	trans   map[string]*raft.InmemTransport

	mu      sync.Mutex
	records []Record
	members map[string]Member
}

func newGroup(t *testing.T, names ...string) *group {
	g := &group{t: t, servers: map[string]*raft.Raft{}, trans: map[string]*raft.InmemTransport{}, members: map[string]Member{}}
	for _, name := range names {
		_, g.trans[name] = raft.NewInmemTransport(raft.ServerAddress(name))
	}
	for _, a := range names {
		for _, b := range names {
			g.trans[a].Connect(raft.ServerAddress(b), g.trans[b])
		}
	}
	for i, name := range names {
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(name)
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
		conf.CommitTimeout = 5 * time.Millisecond
		conf.LogOutput = io.Discard
		store := raft.NewInmemStore()
		r, err := raft.NewRaft(conf, &raft.MockFSM{}, store, store, raft.NewInmemSnapshotStore(), g.trans[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Shutdown().Error() })
		g.servers[name] = r
		if i == 0 {
			err := r.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(name), Address: raft.ServerAddress(name)}}}).Error()
			if err != nil {
				t.Fatal(err)
			}
		}
		g.records = append(g.records, Record{Name: name})
		g.members[name] = Member{Alive: true, Since: time.Now(), Index: 1}
	}
	for _, name := range names {
		g.lead(name)
	}
	return g
}

// lead runs a reconciler on name in each of its terms.
func (g *group) lead(name string) {
	r := g.servers[name]
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	g.t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		end := func() {}
		defer func() { end() }()
		for {
			select {
			case <-ctx.Done():
				return
			case leads := <-r.LeaderCh():
				end()
				if !leads {
					continue
				}
				term, cancel := context.WithCancel(ctx)
				var tw sync.WaitGroup
				tw.Go(func() { g.reconciler(name).Run(term, nil) })
				end = func() { cancel(); tw.Wait() }
			}
		}
	})
}

func (g *group) reconciler(name string) *Reconciler {
	return New(Config{Self: name, Raft: g.servers[name], Timing: Timing{Promote: time.Millisecond, Replace: 500 * time.Millisecond},
		Log: slog.New(slog.DiscardHandler),
		Records: func() ([]Record, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			return slices.Clone(g.records), nil
		},
		Members: func() map[string]Member {
			g.mu.Lock()
			defer g.mu.Unlock()
			m := map[string]Member{}
			for k, v := range g.members {
				m[k] = v
			}
			return m
		},
		Forget: func(_ context.Context, name string) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.records = slices.DeleteFunc(g.records, func(r Record) bool { return r.Name == name })
			return nil
		},
	})
}

// view renders the leader's configuration, as "a* b* c" where * votes.
func (g *group) view() string {
	for _, r := range g.servers {
		if r.State() != raft.Leader {
			continue
		}
		f := r.GetConfiguration()
		if f.Error() != nil {
			continue
		}
		var words []string
		for _, s := range f.Configuration().Servers {
			w := string(s.ID)
			if s.Suffrage == raft.Voter {
				w += "*"
			}
			words = append(words, w)
		}
		slices.Sort(words)
		return fmt.Sprint(words)
	}
	return "no leader"
}

func (g *group) expect(want ...string) {
	g.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !slices.Contains(want, g.view()) {
		if time.Now().After(deadline) {
			g.t.Fatalf("got %s, want one of %v", g.view(), want)
		}
		time.Sleep(10 * time.Millisecond) // the pause of a poll
	}
}

// remembers waits until there are so many records.
func (g *group) remembers(want int) {
	g.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		var records []Record
		g.change(func() { records = slices.Clone(g.records) })
		if len(records) == want {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("records %v, want %d", records, want)
		}
		time.Sleep(10 * time.Millisecond) // the pause of a poll
	}
}

func (g *group) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func TestReconcilerWithRaft(t *testing.T) {
	g := newGroup(t, "a", "b", "c", "d")
	g.expect("[a* b* c* d]")

	g.trans["b"].DisconnectAll()
	for _, n := range []string{"a", "c", "d"} {
		g.trans[n].Disconnect("b")
	}
	g.change(func() { g.members["b"] = Member{Since: time.Now()} })
	g.expect("[a* b c* d*]")

	g.change(func() { g.records[1].Leaving = true })
	g.expect("[a* c* d*]")

	// The leader itself goes: it hands leadership on, and the next one removes
	// it. Two are left, of which one votes.
	g.change(func() { g.records[0].Leaving = true })
	g.expect("[c* d]", "[c d*]")
	g.remembers(2) // who is out of Raft is forgotten after that
}

// The only voter of two is removed: the other one votes first.
func TestReconcilerRemovesTheOnlyVoter(t *testing.T) {
	g := newGroup(t, "a", "b")
	g.expect("[a* b]")
	g.change(func() { g.records[0].Leaving = true })
	g.expect("[b*]")
}
