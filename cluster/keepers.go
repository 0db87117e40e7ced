package cluster

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/reverse"
)

const (
	// reachInterval is how often a peer asks each other one whether it can still be dialled: two TLS
	// handshakes. With more than twenty peers it is reachEach for each of them.
	reachInterval = time.Minute
	reachEach     = 3 * time.Second
	// keepFirst and keepMost bound the pause before a peer that could not be dialled is tried
	// again. That gossip meets it ends the pause.
	keepFirst = 250 * time.Millisecond
	keepMost  = 15 * time.Second
	// askPatience is how long a first answer may take before a connection is kept in case that it is
	// no: where packets are dropped it takes seconds, and gossip would take this peer for dead before.
	askPatience = 500 * time.Millisecond
	// answersInARow say no before anybody is told: a busy machine may miss a try.
	answersInARow = 3
	// failFor is how long a peer cannot be dialled before anybody is told: it may be restarting.
	failFor = 5 * time.Second
	// shortLived is a connection that is not opened again at once: two machines with
	// one identity would push each other out.
	shortLived = 10 * time.Second
)

// Keepers keeps a connection open to each peer that cannot dial this one, which lets that peer
// reach this one through it (see package reverse). Which ones these are is found by asking: each is
// asked at first, when gossip meets it, when this machine has another address, and once a
// minute. A connection is kept from an answer that it cannot, or while the first answer
// takes long, until it answers that it can. Its methods may be called concurrently.
type Keepers struct {
	port     *Port
	members  *Members
	log      *slog.Logger
	patience time.Duration // askPatience but in tests

	mu    sync.Mutex
	peers map[string]*kept
}

// kept is how this peer and another one meet.
type kept struct {
	cancel context.CancelFunc
	again  context.CancelFunc // begins anew, as something may be different; guarded by Keepers.mu

	// What of the member was seen last; touched by Run's goroutine only.
	up             bool
	since, started time.Time
	own            netip.Addr

	Meeting // guarded by Keepers.mu
}

// NewKeepers does nothing before [Keepers.Run].
func NewKeepers(port *Port, members *Members, log *slog.Logger) *Keepers {
	return &Keepers{port: port, members: members, log: log, patience: askPatience, peers: make(map[string]*kept)}
}

// Meeting is how this peer and another one meet.
type Meeting struct {
	// Kept is when the connection was made that this peer keeps, as the other one cannot
	// dial it; zero: there is none.
	Kept time.Time
	// Asked: the other peer has said whether it can dial this one. One no is none yet.
	Asked bool
	// Undialled is why it cannot; "" if it can.
	Undialled string
	// Err says why this peer could not dial the other one for some seconds; nil if it can, or
	// has not tried.
	Err error
}

// Meeting tells what is known of the way between this peer and the one called name.
func (k *Keepers) Meeting(name string) Meeting {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.peers[name]; s != nil {
		return s.Meeting
	}
	return Meeting{}
}

// Run blocks until ctx ends and every connection that it kept is closed.
func (k *Keepers) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wake, unsubscribe := k.members.Subscribe()
	defer unsubscribe()
	for {
		k.look(ctx, &wg)
		k.members.setHidden(k.hidden())
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
	}
}

// hidden tells whether most of the peers that live and answered cannot dial this one. One that
// has trouble of its own hides nobody.
func (k *Keepers) hidden() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	asked, cannot := 0, 0
	for _, s := range k.peers {
		if !s.up || !s.Asked {
			continue
		}
		asked++
		if s.Undialled != "" {
			cannot++
		}
	}
	return 2*cannot > asked
}

// look begins with peers that are new, ends with those that are known no more, and wakes
// those of which something may be different now.
func (k *Keepers) look(ctx context.Context, wg *sync.WaitGroup) {
	own := k.members.Address()
	if !own.IsValid() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known := map[string]bool{}
	for _, m := range k.members.Snapshot() {
		if m.Self || m.APIAddr() == "" {
			continue
		}
		known[m.Name] = true
		s := k.peers[m.Name]
		if s == nil {
			one, cancel := context.WithCancel(ctx)
			s = &kept{cancel: cancel, again: func() {}}
			k.peers[m.Name] = s
			wg.Go(func() { k.keep(one, m.Name, s) })
		} else if m.State.Up() && m.Since != s.since || m.Started != s.started || own != s.own {
			s.again() // also where it was away and met again since the last look
		}
		s.up, s.since, s.started, s.own = m.State.Up(), m.Since, m.Started, own
	}
	for name, s := range k.peers {
		if !known[name] {
			s.cancel()
			delete(k.peers, name)
		}
	}
}

// keep asks the peer, and keeps a connection to it while that is needed.
func (k *Keepers) keep(ctx context.Context, name string, s *kept) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var current *link
	var failing time.Time // since when; zero: the peer can be dialled
	needed, noes, pause := false, 0, keepFirst
	for round := ctx; ctx.Err() == nil; {
		if round.Err() != nil { // gossip met the peer: one that restarted wants several answers soon
			pause = keepFirst
		}
		round = k.round(ctx, s)
		own := k.members.Address()
		if current.over(own, k.met(name)) {
			current.cancel()
			current = nil
		}
		patience := k.patience
		if needed {
			patience = 0
		}
		var opened error
		open := func() {
			if current == nil && opened == nil {
				current, opened = k.open(ctx, round, &wg, name, own)
			}
		}
		answers := k.ask(round, &wg, name, own)
		var a answer
		select {
		case a = <-answers:
		case <-time.After(patience):
			open()
			a = <-answers
		}
		if a.err == nil && a.why != "" {
			open()
		}
		if round.Err() != nil {
			continue
		}
		if a.err == nil {
			needed = a.why != ""
		}
		if a.err == nil && needed {
			a.err = opened
		}
		wait := k.interval()
		switch {
		case a.err != nil:
			if failing.IsZero() {
				failing = time.Now()
			}
			pause = min(pause, keepMost)
			wait, pause = pause, min(2*pause, keepMost)
		case needed: // perhaps the machines were only too busy
			noes++
			failing = time.Time{}
			wait, pause = pause, min(2*pause, wait)
		default:
			if current != nil {
				current.keeper.Retire()
				current = nil
			}
			noes, failing, pause = 0, time.Time{}, keepFirst
		}
		k.note(name, s, current, a, !needed || noes >= answersInARow, failing)
		select {
		case <-current.ended():
			k.lost(s)
			if time.Since(current.since) >= shortLived { // the peer restarts, and cannot be dialled for a while
				pause = keepFirst
			}
			wait = min(pause, keepMost)
		case <-round.Done():
			continue
		case <-time.After(time.Duration(float64(wait) * (0.75 + rand.Float64()/2))):
			continue
		}
		select {
		case <-round.Done():
		case <-time.After(wait):
		}
	}
}

// round returns a context that ends when something may be different from now on.
func (k *Keepers) round(ctx context.Context, s *kept) context.Context {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.again()
	ctx, s.again = context.WithCancel(ctx)
	return ctx
}

// met is when gossip met the peer last; zero if that is away.
func (k *Keepers) met(name string) time.Time {
	if m, ok := k.members.table.get(name); ok && m.State.Up() {
		return m.Since
	}
	return time.Time{}
}

// answer is why a peer cannot dial this one, "" if it can; or why it cannot be asked.
type answer struct {
	why string
	err error
}

// ask gives one answer.
func (k *Keepers) ask(ctx context.Context, wg *sync.WaitGroup, name string, own netip.Addr) <-chan answer {
	answers := make(chan answer, 1)
	wg.Go(func() {
		a, err := k.port.askReach(ctx, name, reachQuestion{Address: own, Port: k.members.cfg.Port, GossipPort: k.members.cfg.Bind.Port()})
		switch {
		case errors.Is(err, errOlder): // that peer is met as ever
			err = nil
		case err == nil && !a.Reached && a.Why == "":
			a.Why = "it does not say"
		}
		answers <- answer{a.Why, err}
	})
	return answers
}

// note keeps what was found for [Keepers.Meeting]. That the peer could not be asked, or that the
// answer is not sure yet, changes nothing of what it said last.
func (k *Keepers) note(name string, s *kept, current *link, a answer, sure bool, failing time.Time) {
	k.mu.Lock()
	before := s.Meeting
	now := Meeting{Asked: before.Asked, Undialled: before.Undialled}
	if current != nil {
		now.Kept = current.since
	}
	if a.err == nil && sure {
		now.Asked, now.Undialled = true, a.why
	}
	if a.err != nil && time.Since(failing) >= failFor {
		now.Err = a.err
	}
	s.Meeting = now
	k.mu.Unlock()
	switch {
	case before.Undialled == "" && now.Undialled != "":
		k.log.Info("a peer cannot dial this one, which keeps a connection to it", "peer", name, "why", now.Undialled)
	case before.Undialled != "" && now.Undialled == "":
		k.log.Info("a peer can dial this one again", "peer", name)
	}
	if before.Kept != now.Kept || before.Asked != now.Asked || (before.Undialled == "") != (now.Undialled == "") || (before.Err == nil) != (now.Err == nil) {
		k.members.Changed()
	}
}

// lost notes that the connection which was kept is no more.
func (k *Keepers) lost(s *kept) {
	k.mu.Lock()
	s.Kept = time.Time{}
	k.mu.Unlock()
	k.members.Changed()
}

// interval is that between two questions to one peer.
func (k *Keepers) interval() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(reachInterval, time.Duration(len(k.peers))*reachEach)
}

// link is a connection that this peer keeps.
type link struct {
	keeper *reverse.Keeper
	own    netip.Addr // this machine's address when it was made
	since  time.Time
	cancel context.CancelFunc
	done   chan struct{}
}

// open makes a connection to be kept, which lives as long as ctx. It is dialled within round.
func (k *Keepers) open(ctx, round context.Context, wg *sync.WaitGroup, name string, own netip.Addr) (*link, error) {
	conn, err := k.port.dialDirect(round, name, protocolLink)
	if err != nil {
		return nil, err
	}
	log := k.log.With("peer", name)
	keeper, err := reverse.NewKeeper(conn, handler{ctx, k}, log)
	if err != nil {
		conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &link{keeper: keeper, own: own, since: time.Now(), cancel: cancel, done: make(chan struct{})}
	wg.Go(func() {
		defer close(l.done)
		defer cancel()
		if err := keeper.Run(ctx); err != nil {
			log.Info("the connection that is kept to a peer was lost", "error", err)
		}
	})
	return l, nil
}

// over tells whether it has ended, was made from another address than our own now, or before
// gossip met the peer last: what was on its way when a cable was cut may take long to
// arrive, a new connection does not.
func (l *link) over(own netip.Addr, met time.Time) bool {
	if l == nil {
		return false
	}
	select {
	case <-l.done:
		return true
	default:
		return l.own != own || met.After(l.since)
	}
}

// ended is closed when it has; nil if there is none.
func (l *link) ended() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.done
}

// handler gives what comes over a kept connection to whom it would have been dialled.
type handler struct {
	ctx context.Context
	k   *Keepers
}

func (h handler) Stream(kind reverse.Kind, conn net.Conn) {
	if kind == reverse.Gossip {
		h.k.members.accept(conn)
		return
	}
	h.k.port.take(h.ctx, conn)
}

func (h handler) Packet(b []byte, from net.Addr) { h.k.members.receive(b, from) }
