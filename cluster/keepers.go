package cluster

import (
	"context"
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
)

// Keepers keeps a connection open to each peer that cannot dial this one, which lets that peer
// reach this one through it (see package reverse). Which ones these are is found by asking: each is
// asked at first, when gossip meets it, when this machine has another address, and once a
// minute. Until a peer has answered that it can, a connection is kept. Its methods may be
// called concurrently.
type Keepers struct {
	port    *Port
	members *Members
	log     *slog.Logger

	mu    sync.Mutex
	peers map[string]*kept
}

// kept is how this peer and another one meet.
type kept struct {
	cancel context.CancelFunc
	wake   chan struct{}

	// What of the member was seen last; touched by Run's goroutine only.
	up      bool
	started time.Time
	own     netip.Addr

	Meeting // guarded by Keepers.mu
}

// NewKeepers does nothing before [Keepers.Run].
func NewKeepers(port *Port, members *Members, log *slog.Logger) *Keepers {
	return &Keepers{port: port, members: members, log: log, peers: make(map[string]*kept)}
}

// Meeting is how this peer and another one meet.
type Meeting struct {
	// Kept is when the connection was made that this peer keeps, as the other one cannot
	// dial it; zero: there is none.
	Kept time.Time
	// Asked: the other peer has said whether it can dial this one.
	Asked bool
	// Undialled is why it cannot; "" if it can.
	Undialled string
	// Err says why this peer could not dial the other one; nil if it can, or has not tried.
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

// hidden tells whether most of the peers that answered cannot dial this one. One that has
// trouble of its own hides nobody.
func (k *Keepers) hidden() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	asked, cannot := 0, 0
	for _, s := range k.peers {
		if s.Asked {
			asked++
		}
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
			s = &kept{cancel: cancel, wake: make(chan struct{}, 1)}
			k.peers[m.Name] = s
			wg.Go(func() { k.keep(one, m.Name, s) })
		} else if (m.State.Up() && !s.up) || m.Started != s.started || own != s.own {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
		s.up, s.started, s.own = m.State.Up(), m.Started, own
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
	var links sync.WaitGroup
	defer links.Wait()
	var current *link
	needed, pause := true, keepFirst // until the peer says that it can dial us
	for {
		own := k.members.Address()
		if current.over(own) {
			current.cancel()
			current = nil
		}
		var err error
		if needed && current == nil {
			current, err = k.open(ctx, &links, name, own)
		}
		why := ""
		if err == nil {
			why, err = k.ask(ctx, name, own)
		}
		if ctx.Err() != nil {
			return
		}
		if alerted(err) { // that peer is met as ever
			err = nil
		}
		if err == nil {
			needed = why != ""
		}
		if !needed && current != nil {
			current.keeper.Retire()
			current = nil
		}
		k.note(name, s, current, why, err)
		wait := k.interval()
		switch {
		case err != nil:
			wait, pause = pause, min(2*pause, keepMost)
		case needed: // perhaps the machines were only too busy
			wait, pause = pause, min(2*pause, wait)
		default:
			pause = keepFirst
		}
		select {
		case <-current.ended():
			k.note(name, s, nil, why, err)
			wait = keepFirst // who closes each one at once is asked with a pause
		case <-ctx.Done():
			return
		case <-s.wake:
			continue
		case <-time.After(time.Duration(float64(wait) * (0.75 + rand.Float64()/2))):
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-time.After(wait):
		}
	}
}

// ask returns why the peer cannot dial this one, "" if it can.
func (k *Keepers) ask(ctx context.Context, name string, own netip.Addr) (why string, err error) {
	a, err := k.port.askReach(ctx, name, reachQuestion{Address: own, Port: k.members.cfg.Port, GossipPort: k.members.cfg.Bind.Port()})
	if err == nil && !a.Reached && a.Why == "" {
		a.Why = "it does not say"
	}
	return a.Why, err
}

// note keeps what was found for [Keepers.Meeting]. That the peer could not be asked
// changes nothing of what it said last.
func (k *Keepers) note(name string, s *kept, current *link, why string, err error) {
	now := Meeting{Asked: err == nil, Undialled: why, Err: err}
	if current != nil {
		now.Kept = current.since
	}
	k.mu.Lock()
	before := s.Meeting
	if err != nil {
		now.Asked, now.Undialled = before.Asked, before.Undialled
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

// open makes a connection to be kept, which lives as long as ctx.
func (k *Keepers) open(ctx context.Context, links *sync.WaitGroup, name string, own netip.Addr) (*link, error) {
	conn, err := k.port.dialDirect(ctx, name, protocolLink)
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
	links.Go(func() {
		defer close(l.done)
		defer cancel()
		if err := keeper.Run(ctx); err != nil {
			log.Info("the connection that is kept to a peer was lost", "error", err)
		}
	})
	return l, nil
}

// over tells whether it has ended, or was made from another address than our own now.
func (l *link) over(own netip.Addr) bool {
	if l == nil {
		return false
	}
	select {
	case <-l.done:
		return true
	default:
		return l.own != own
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
