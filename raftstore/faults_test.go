package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
	"github.com/rundigitalplatform/rookery/raftstore/storetest"
)

func write(s raftstore.Store, key, value string) (raftstore.Result, error) {
	return s.Txn(context.Background(), raftstore.Txn{{Key: key, If: raftstore.Any, Kind: raftstore.Put, Value: []byte(value)}})
}

// patient is for tests in which no write may fail: an election that is split takes longer
// than one grace.
func patient(c *raftstore.Config) { c.LeaderlessGrace = 5 * time.Second }

// load writes through a store until stop is closed and keeps what was
// acknowledged. A write creates its key, so one that happened twice shows.
type load struct {
	t     *testing.T
	mu    sync.Mutex
	acked map[string]int64
	wg    sync.WaitGroup
	stop  chan struct{}
	n     atomic.Int64
}

func (l *load) run(s raftstore.Store) {
	l.wg.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			key := fmt.Sprintf("load/%06d", l.n.Add(1))
			res, err := s.Txn(context.Background(), raftstore.Txn{{Key: key, Kind: raftstore.Put, Value: []byte(key)}})
			switch {
			case errors.Is(err, raftstore.ErrClosed):
				return
			case err != nil: // may or may not have happened, or no quorum for a moment
				continue
			case !res.Applied:
				l.t.Errorf("%s existed before its only write: it was proposed twice", key)
			}
			l.mu.Lock()
			l.acked[key] = res.Revision
			l.mu.Unlock()
		}
	})
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

func TestLeaderKilledUnderLoad(t *testing.T) {
	c := rafttest.NewCluster(t, patient, "a", "b", "c")
	l := &load{t: t, acked: map[string]int64{}, stop: make(chan struct{})}
	for _, p := range c.Peers() {
		l.run(p)
		l.run(p)
	}
	for range 2 {
		before := l.count()
		rafttest.Eventually(t, "writes are acknowledged", func() bool { return l.count() > before+100 })
		old := c.Leader()
		start := time.Now()
		c.Kill(old)
		other := c.Leader()
		if _, err := write(other, "probe", "x"); err != nil {
			t.Errorf("write after the leader was killed: %v", err)
		}
		t.Logf("writes were back after %s", time.Since(start))
		l.run(c.Revive(old.Name))
	}
	before := l.count()
	rafttest.Eventually(t, "writes go on", func() bool { return l.count() > before+100 })
	close(l.stop)
	l.wg.Wait()
	c.Agree()
	for _, p := range c.Peers() {
		for key, revision := range l.acked {
			if kv, _ := p.Get(key); kv == nil || kv.CreateRevision != revision {
				t.Fatalf("%s: acknowledged %s at %d, found %+v", p.Name, key, revision, kv)
			}
		}
	}
	t.Logf("%d writes acknowledged", len(l.acked))
}

func TestPartition(t *testing.T) {
	c := rafttest.NewCluster(t, nil, "a", "b", "c")
	old := c.Leader()
	storetest.Put(t, old, "k", "before")
	c.Net.SetCut(old.Name, true)

	// Cut off, it serves what it has, and says so of the rest.
	rafttest.Eventually(t, "the old leader steps down", func() bool { return !old.IsLeader() })
	l := c.Leader()
	if _, err := write(l, "k", "majority"); err != nil {
		t.Fatal(err)
	}
	var no *raftstore.NoQuorumError
	if _, err := write(old, "k", "minority"); !errors.As(err, &no) {
		t.Errorf("write in the minority: %v", err)
	}
	if err := old.Sync(context.Background()); !errors.As(err, &no) {
		t.Errorf("linearizable read in the minority: %v", err)
	}
	if kv, _ := old.Get("k"); string(kv.Value) != "before" {
		t.Errorf("stale read: %s", kv.Value)
	}

	c.Net.SetCut(old.Name, false)
	rafttest.Eventually(t, "the healed peer has what it missed", func() bool {
		kv, _ := old.Get("k")
		return string(kv.Value) == "majority"
	})
	c.Agree()
}

func TestNoQuorumIsSaidAtOnce(t *testing.T) {
	c := rafttest.NewCluster(t, nil, "a", "b", "c")
	last := c.Leader()
	var missing []string
	for _, p := range c.Followers() {
		missing = append(missing, p.Name)
		c.Kill(p)
	}
	slices.Sort(missing)
	var no *raftstore.NoQuorumError
	rafttest.Eventually(t, "no quorum is noticed", func() bool {
		_, err := write(last, "k", "x")
		return errors.As(err, &no)
	})
	start := time.Now()
	_, err := write(last, "k", "x")
	if took := time.Since(start); took > 2*time.Second { // without knowing, it would be five
		t.Errorf("it took %s to say so", took)
	}
	if !errors.As(err, &no) || no.Voters != 3 || !slices.Equal(no.Missing, missing) {
		t.Errorf("%v, want %v missing", err, missing)
	}
	c.Revive(missing[0])
	rafttest.Eventually(t, "writes are back with one more", func() bool {
		_, err := write(last, "k", "x")
		return err == nil
	})
}

func TestRestart(t *testing.T) {
	// A threshold so low that the state comes from a snapshot and a log.
	tune := func(cfg *raftstore.Config) {
		cfg.SnapshotThreshold, cfg.TrailingLogs, cfg.SnapshotInterval = 20, 10, 10*time.Millisecond
	}
	c := rafttest.NewCluster(t, tune, "a", "b", "c")
	l := c.Leader()
	for i := range 100 {
		storetest.Put(t, l, fmt.Sprint("k", i%30), fmt.Sprint(i))
	}
	if _, err := l.Txn(context.Background(), raftstore.Txn{{Key: "lease", Kind: raftstore.Put, TTL: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	c.Agree()
	want, revision, err := l.Digest(0)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := l.Get("k1")
	lease, _ := l.Get("lease")
	c.Stop()

	// Alone, without quorum, a peer has what was committed.
	island := c.Start("a", false)
	if got, rev, err := island.Digest(revision); err != nil || got != want {
		t.Errorf("alone after a cold start: revision %d of %d, %v", rev, revision, err)
	}
	c.Start("b", false)
	c.Start("c", false)
	l = c.Leader()
	if next := storetest.Put(t, l, "k1", "again"); next != revision+1 {
		t.Errorf("revision %d after a restart at %d", next, revision)
	}
	after, _ := l.Get("k1")
	if after.CreateRevision != before.CreateRevision {
		t.Errorf("created at %d, was %d", after.CreateRevision, before.CreateRevision)
	}
	if kv, _ := l.Get("lease"); kv == nil || kv.Expires != lease.Expires {
		t.Errorf("lease is %+v, was %+v", kv, lease)
	}
	c.Agree()
}

func TestSnapshotForOneThatIsFarBehind(t *testing.T) {
	tune := func(cfg *raftstore.Config) {
		cfg.SnapshotThreshold, cfg.TrailingLogs, cfg.SnapshotInterval = 20, 5, 10*time.Millisecond
	}
	c := rafttest.NewCluster(t, tune, "a", "b", "c")
	lag := c.Followers()[0]
	w, err := lag.Watch("", lag.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c.Net.SetCut(lag.Name, true)
	l := c.Leader()
	for i := range 200 {
		storetest.Put(t, l, fmt.Sprint("k", i), "x")
	}
	c.Net.SetCut(lag.Name, false)
	c.Agree()
	if _, err := w.Next(context.Background()); !errors.Is(err, raftstore.ErrCompacted) {
		t.Errorf("a watch over a snapshot: %v", err)
	}
	if lag.CompactRevision() < 2 {
		t.Error("the peer that was behind got the log, not a snapshot")
	}
}

// TestReadIndex: what one peer acknowledged, every other reads after Sync, while
// leadership moves.
func TestReadIndex(t *testing.T) {
	c := rafttest.NewCluster(t, patient, "a", "b", "c")
	peers := []*rafttest.Peer{c.Peers()["a"], c.Peers()["b"], c.Peers()["c"]}
	for i := range 150 {
		from, to := peers[i%3], peers[(i+1)%3]
		res, err := write(from, "k", fmt.Sprint(i))
		if err != nil {
			t.Fatalf("write %d through %s: %v", i, from.Name, err)
		}
		if err := to.Sync(context.Background()); err != nil {
			t.Fatalf("sync %d on %s: %v", i, to.Name, err)
		}
		if kv, _ := to.Get("k"); kv == nil || kv.ModRevision < res.Revision {
			t.Fatalf("write %d got revision %d, %s reads %+v after Sync", i, res.Revision, to.Name, kv)
		}
		if i%50 == 25 {
			if err := c.Leader().Raft().LeadershipTransfer().Error(); err != nil {
				t.Logf("transfer: %v", err)
			}
		}
	}
}

func TestRunWhileLeader(t *testing.T) {
	c := rafttest.NewCluster(t, nil, "a", "b", "c")
	var active, most atomic.Int32
	began := make(chan string, 16)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, p := range c.Peers() {
		wg.Go(func() {
			err := p.RunWhileLeader(ctx, func(term context.Context) error {
				began <- p.Name
				most.Store(max(most.Load(), active.Add(1)))
				<-term.Done()
				active.Add(-1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	first := <-began
	rafttest.Eventually(t, "another leads after "+first, func() bool {
		select {
		case first = <-began: // an election that the machine was too slow for
		default:
		}
		return c.Peers()[first].Raft().LeadershipTransfer().Error() == nil
	})
	if second := <-began; second == first {
		t.Errorf("%s leads again after it handed over", second)
	}
	cancel()
	wg.Wait()
	if n := active.Load(); n != 0 {
		t.Errorf("%d still run", n)
	}
}

func TestIdleWritesNothing(t *testing.T) {
	c := rafttest.NewCluster(t, nil, "a", "b", "c")
	storetest.Put(t, c.Leader(), "k", "x")
	c.Agree()
	modified := func() map[string]time.Time {
		times := map[string]time.Time{}
		err := filepath.Walk(c.Dir, func(path string, info os.FileInfo, err error) error {
			if err == nil {
				times[strings.TrimPrefix(path, c.Dir)] = info.ModTime()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return times
	}
	// The commit index is put down a second after the last write; then nothing is.
	quietSince, seen := time.Now(), modified()
	rafttest.Eventually(t, "no file changes for 3 s", func() bool {
		now := modified()
		for path, at := range now {
			if !at.Equal(seen[path]) {
				quietSince, seen = time.Now(), now
			}
		}
		return time.Since(quietSince) > 3*time.Second
	})
}

func TestDamage(t *testing.T) {
	tune := func(cfg *raftstore.Config) {
		cfg.SnapshotThreshold, cfg.TrailingLogs, cfg.SnapshotInterval = 20, 10, 10*time.Millisecond
	}
	flip := func(t *testing.T, path string, find string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Everywhere: a page that is not in use any more may have it as well.
		damaged := bytes.ReplaceAll(b, []byte(find), bytes.ToUpper([]byte(find)))
		if bytes.Equal(b, damaged) {
			t.Fatalf("%s has no %q", path, find)
		}
		b = damaged
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one := func(t *testing.T, pattern string) string {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		return paths[len(paths)-1]
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		say    string
	}{
		{"log cut short", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "raft.db"), 20_000); err != nil {
				t.Fatal(err)
			}
		}, "cut short"},
		{"log without a head", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "raft.db")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			clear(b[:2*os.Getpagesize()])
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "meta page"},
		{"log entry changed", func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "raft.db"), "the last value")
		}, "checksum"},
		{"snapshot changed", func(t *testing.T, dir string) {
			flip(t, one(t, filepath.Join(dir, "snapshots", "*-*", "state.bin")), "value")
		}, "damaged"},
		{"snapshot cut short", func(t *testing.T, dir string) {
			if err := os.Truncate(one(t, filepath.Join(dir, "snapshots", "*-*", "state.bin")), 50); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		{"snapshots lost", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "snapshots")); err != nil {
				t.Fatal(err)
			}
		}, "log entry 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := rafttest.NewCluster(t, tune, "a")
			l := c.Leader()
			for i := range 60 {
				storetest.Put(t, l, fmt.Sprint("k", i), "value")
			}
			storetest.Put(t, l, "last", "the last value")
			dir := filepath.Join(c.Dir, "a")
			rafttest.Eventually(t, "there is a snapshot", func() bool {
				paths, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*[0-9]", "state.bin"))
				return len(paths) > 0
			})
			c.Halt(l)
			tt.damage(t, dir)
			s, err := raftstore.New(c.Config("a"))
			if err != nil {
				t.Fatal(err)
			}
			var damaged *raftstore.DamagedError
			ctx, cancel := context.WithTimeout(context.Background(), rafttest.Patience)
			defer cancel()
			if err := s.Run(ctx); !errors.As(err, &damaged) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Run: %v, want damage and %q", err, tt.say)
			}
		})
	}
}

func TestTwoProcessesOneDirectory(t *testing.T) {
	c := rafttest.NewCluster(t, nil, "a")
	s, err := raftstore.New(c.Config("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another rookery") {
		t.Errorf("second Run on the same directory: %v", err)
	}
	if _, err := write(c.Leader(), "k", "x"); err != nil {
		t.Errorf("the first is disturbed: %v", err)
	}
}

func BenchmarkReplicatedTxn(b *testing.B) {
	b.SetParallelism(8) // 16 clients on the 2 cores that the yardsticks are from
	benchmarkTxn(b, rafttest.NewCluster(b, nil, "a").Leader())
}

// A caller without patience is told so, and not that there is no quorum: a read would
// otherwise be answered from the local state, with a warning that is not true.
func TestDeadlineIsNotMissingQuorum(t *testing.T) {
	p := rafttest.NewCluster(t, nil, "a").Peers()["a"]
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if err := p.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("sync: %v", err)
	}
	put := raftstore.Txn{{Key: "k", If: raftstore.Any, Kind: raftstore.Put, Value: []byte("v")}}
	if _, err := p.Txn(ctx, put); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("txn: %v", err)
	}
}
