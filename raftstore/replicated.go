package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

// Replicated is a [Store] under Raft: every peer has the whole state, in memory
// and on disk. A write is acknowledged when a majority of the voters has it on
// disk (fsync) and this peer has applied it.
//
// Before Run it is empty. A peer that has never been in a cluster waits, as an
// empty store without a leader, until Bootstrap makes it the first of one or the
// leader of one adds it.
type Replicated struct {
	cfg     Config
	st      *state
	pending *pending
	fsm     *fsm
	batcher *batcher
	reads   *reads
	client  *client

	raft    atomic.Pointer[raft.Raft]
	trans   atomic.Pointer[raft.NetworkTransport]
	lead    atomic.Pointer[leadership] // nil while this peer does not lead
	changed broadcast                  // something about who leads

	ran     atomic.Bool
	started chan struct{} // closed when the state on disk is loaded and Raft runs
	closing chan struct{} // closed when Run begins to stop
	down    chan struct{} // closed when Raft has stopped

	leaderMu   sync.Mutex
	leaderless time.Time // since when no leader is known; zero while one is

	nudger nudger
}

var _ Store = (*Replicated)(nil)

// New returns a store for cfg. It touches nothing: Run does.
func New(cfg Config) (*Replicated, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var session [8]byte
	if _, err := rand.Read(session[:]); err != nil {
		return nil, fmt.Errorf("read random bytes: %w", err)
	}
	st := newState(cfg.HistoryEvents, cfg.HistoryBytes)
	// Never 0: that is the proposals nobody waits for.
	p := newPending(binary.BigEndian.Uint64(session[:]) | 1)
	r := &Replicated{
		cfg: cfg, st: st, pending: p, fsm: newFSM(st, p), batcher: newBatcher(),
		started: make(chan struct{}), closing: make(chan struct{}), down: make(chan struct{}), leaderless: time.Now(),
	}
	r.reads = &reads{lead: r.lead.Load, raft: r.raft.Load, await: r.await}
	r.nudger = nudger{at: map[raft.ServerID]*nudgeState{}}
	return r, nil
}

// Bootstrap makes this peer the first and only voter of a new cluster, if it has
// never been in one; otherwise it does nothing. It must be called before Run, and
// on one peer of a cluster only.
func (r *Replicated) Bootstrap() error {
	f, err := openFiles(&r.cfg)
	if err != nil {
		return err
	}
	first := raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: raft.ServerID(r.cfg.Name), Address: raft.ServerAddress(r.cfg.Name)},
	}}
	// No transport: only old protocol versions need one to encode addresses.
	err = raft.BootstrapCluster(r.raftConfig(nil), f.logs, f.db, f.snaps, nil, first)
	if errors.Is(err, raft.ErrCantBootstrap) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("bootstrap: %w", err)
	}
	return errors.Join(err, f.close())
}

func (r *Replicated) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.Name)
	c.HeartbeatTimeout = r.cfg.HeartbeatTimeout
	c.ElectionTimeout = r.cfg.ElectionTimeout
	c.LeaderLeaseTimeout = r.cfg.LeaderLease
	// How soon followers learn of a commit when nothing follows it. We tell them
	// at once (see nudger); this is for those who missed it. It is a message to
	// each follower as often, also when nothing happens.
	c.CommitTimeout = 2 * time.Second
	c.BatchApplyCh = true
	c.MaxAppendEntries = 32 // entries are batches already
	c.SnapshotThreshold = r.cfg.SnapshotThreshold
	c.SnapshotInterval = r.cfg.SnapshotInterval
	c.TrailingLogs = r.cfg.TrailingLogs
	// A removed peer stays a follower without a cluster, and says so; what
	// becomes of the process is for others to decide.
	c.ShutdownOnRemove = false
	c.NoSnapshotRestoreOnStart = true // files.load has done it
	c.NoLegacyTelemetry = true
	c.NotifyCh = notify
	c.Logger = &raftLogger{log: r.cfg.Logger}
	return c
}

// Run loads the state from disk, takes part in the cluster until ctx ends, and
// then hands leadership over and closes the store. It blocks until all it started
// is gone. It fails with a [DamagedError] when the files are not what was written,
// and when the log holds what this version does not know. It can be called once.
func (r *Replicated) Run(ctx context.Context) error {
	if !r.ran.CompareAndSwap(false, true) {
		return errors.New("the store has been run already")
	}
	defer r.st.close()
	stopping := sync.OnceFunc(func() { close(r.closing) })
	defer stopping()
	f, err := openFiles(&r.cfg)
	if err != nil {
		return err
	}
	if err := f.load(r.fsm); err != nil {
		return errors.Join(err, f.close())
	}
	trans := newRaftTransport(&r.cfg)
	notify := make(chan bool, 8)
	stable := &patient{f.db, r.closing, r.cfg.Logger, r.cfg.Dir}
	stopsEarly := context.AfterFunc(ctx, stopping)
	var rf *raft.Raft
	stable.apart(func() { rf, err = raft.NewRaft(r.raftConfig(notify), r.fsm, f.logs, stable, f.snaps, trans) })
	stopsEarly()
	if err != nil {
		return errors.Join(fmt.Errorf("start raft: %w", err), trans.Close(), f.close())
	}
	if rf == nil { // there was no space until ctx ended
		return errors.Join(trans.Close(), f.close())
	}

	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	group, failed := errgroup.WithContext(background)
	r.client = &client{transport: r.cfg.Transport, ctx: background}
	r.expectElection()
	r.raft.Store(rf)
	r.trans.Store(trans)
	r.start(group, failed, rf, f, notify)
	close(r.started)

	var cause error
	select {
	case <-ctx.Done():
	case <-failed.Done():
	case cause = <-r.fsm.failed:
	}
	// Leadership goes first, while everything that a hand-over needs still runs;
	// then whoever waits is let go; then Raft, and the files it writes last.
	handOver(rf)
	stopping()
	cancel()
	shutdown := rf.Shutdown()
	closed := trans.Close() // Raft's requests to peers that do not answer end with it
	down := shutdown.Error()
	close(r.down)
	ran := group.Wait()
	r.client.wg.Wait()
	r.reads.wg.Wait()
	r.nudger.wg.Wait()
	return errors.Join(cause, down, closed, ran, f.close())
}

func (r *Replicated) start(g *errgroup.Group, ctx context.Context, rf *raft.Raft, f *files, notify <-chan bool) {
	run := func(work func()) {
		g.Go(func() error { work(); return nil })
	}
	run(func() { r.batcher.run(ctx, rf, r.await, r.nudge) })
	run(func() { r.runLeadership(ctx, rf, notify) })
	run(func() { r.runObserver(ctx, rf) })
	run(func() { r.runPace(ctx, rf) })
	run(func() { r.runCommitMark(ctx, f) })
	s := &server{r: r}
	g.Go(func() error { return s.run(ctx, r.cfg.Transport.Listener(ProtocolStore)) })
}

// await is f.Error, but does not outlast Raft, which never answers what it has in a queue when it is
// shut down: entries that are committed and wait to be applied, for one. The goroutine that waits for
// such an answer stays until the process ends.
func (r *Replicated) await(f raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- f.Error() }()
	select {
	case err := <-answer:
		return err
	case <-r.down:
	}
	select {
	case err := <-answer:
		return err
	default:
		return raft.ErrRaftShutdown
	}
}

// handOverTimeout: a daemon that stops must stop, also when nobody takes over.
const handOverTimeout = time.Second

// handOver gives leadership to another voter, if this peer has it and there is one.
func handOver(rf *raft.Raft) {
	if rf.State() != raft.Leader {
		return
	}
	voters := 0
	for _, s := range rf.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters < 2 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = rf.LeadershipTransfer().Error() // if it fails, the others hold an election; it may stay unanswered, see await
	}()
	t := time.NewTimer(handOverTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// commitMarkDelay is how long after a write the commit index is put down: late
// enough that a busy log is not fsynced twice as often, soon enough that an island
// that boots cold has all but the last second.
const commitMarkDelay = time.Second

// runCommitMark remembers on disk how far the log is known to be committed. Raft
// itself learns that anew from a majority at each start; a peer that is alone
// would come up with its last snapshot only. While nothing is applied, it
// writes nothing.
func (r *Replicated) runCommitMark(ctx context.Context, f *files) {
	marked, err := f.db.GetUint64(commitKey)
	if err != nil {
		marked = 0 // not there yet; load has read the file, so it is whole
	}
	for {
		// Wakes with the first entry after what is marked.
		stopped := r.fsm.applied.wait(ctx, marked+1) != nil
		if !stopped {
			t := time.NewTimer(commitMarkDelay)
			select {
			case <-t.C:
			case <-ctx.Done():
				stopped = true
			}
			t.Stop()
		}
		if index := r.fsm.applied.get(); index > marked {
			if err := f.db.SetUint64(commitKey, index); err != nil {
				r.cfg.Logger.Warn("could not remember the commit index", "err", err)
			}
			marked = index
		}
		if stopped {
			return
		}
	}
}
