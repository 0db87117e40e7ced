package network

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/network/pathmtu"
)

const (
	// lookEvery is how long a path that answers is left alone: what RFC 8899 (5.1.1) gives a path
	// until it is asked whether it carries more. A tenth of it is left to chance, so that peers
	// do not ask all at once.
	lookEvery = 10 * time.Minute
	// lookAgain is when a path that was silent is asked again at first; each time it is twice as
	// long, up to lookEvery. A machine that boots takes longer than that to gossip.
	lookAgain = 15 * time.Second
	// lookPause is the least time between two looks that routers are the reason for, as who
	// forges their messages could be one too.
	lookPause = 10 * time.Second
	// looks is how many paths are looked at at once.
	looks = 16
)

// Path is the way to another peer, as it was found.
type Path struct {
	Peer string
	To   netip.Addr // the peer's address on the network between the machines
	// MTU of the path, in bytes, where it is less than Most; zero: no less was found.
	MTU    int
	Most   int  // the largest packet that the backend ever sends
	Room   int  // the largest packet that a pod can send that way, of IPv4
	Silent bool // nothing was answered when it was last looked at
}

// paths keeps what is known of the ways to other peers.
type paths struct {
	find func(ctx context.Context, from, to netip.Addr, most int) (int, error) // as pathmtu.Find
	log  *slog.Logger
	wake chan struct{}

	mu   sync.Mutex
	ways map[netip.Addr]way // by where to
}

// way is a path, where it was looked at last and when it will be.
type way struct {
	peer     string
	from     netip.Addr
	most     int
	alive    bool // only these are looked at
	mtu      int  // less than most; zero: nothing less was found
	silences int  // since the last answer
	looked   time.Time
	due      time.Time
}

func newPaths(log *slog.Logger) *paths {
	return &paths{find: pathmtu.Find, log: log, wake: make(chan struct{}, 1), ways: map[netip.Addr]way{}}
}

// set says which paths there are; new ones, and those of which more or less is asked now, are
// looked at at once.
func (p *paths) set(want map[netip.Addr]way) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for to, w := range want {
		have, known := p.ways[to]
		same := known && have.from == w.from && have.most == w.most && have.alive == w.alive
		if known && have.from == w.from {
			w.mtu, w.silences, w.looked, w.due = have.mtu, have.silences, have.looked, have.due
		}
		if w.mtu >= w.most {
			w.mtu = 0
		}
		if !same {
			w.silences, w.due = 0, time.Time{}
			p.poke()
		}
		want[to] = w
	}
	p.ways = want
}

func (p *paths) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// mtu is what was found of the way there; zero: nothing smaller than what is sent.
func (p *paths) mtu(to netip.Addr) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ways[to].mtu
}

// told is that a router says it dropped a packet on the way there.
func (p *paths) told(to netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.ways[to]
	if next := w.looked.Add(lookPause); ok && next.Before(w.due) {
		w.due = next
		p.ways[to] = w
		p.poke()
	}
}

// run looks at each path when it is time, and calls changed when one has another MTU.
func (p *paths) run(ctx context.Context, changed func()) {
	for {
		due, next := p.due(time.Now())
		if len(due) > 0 {
			if p.look(ctx, due) {
				changed()
			}
			if ctx.Err() != nil {
				return
			}
			continue
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer:
		}
	}
}

// due are the paths to look at now, or else when the next one is to be; zero: never.
func (p *paths) due(now time.Time) (all []netip.Addr, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for to, w := range p.ways {
		switch {
		case !w.alive:
		case !w.due.After(now):
			all = append(all, to)
		case next.IsZero() || w.due.Before(next):
			next = w.due
		}
	}
	return all, next
}

// living are all the paths to peers that live.
func (p *paths) living() (all []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for to, w := range p.ways {
		if w.alive {
			all = append(all, to)
		}
	}
	return all
}

// look looks at paths, and tells whether one has another MTU than before.
func (p *paths) look(ctx context.Context, all []netip.Addr) (changed bool) {
	var group errgroup.Group
	group.SetLimit(looks)
	found := make([]bool, len(all))
	for i, to := range all {
		group.Go(func() error {
			p.mu.Lock()
			w := p.ways[to]
			p.mu.Unlock()
			mtu, err := p.find(ctx, w.from, to, w.most)
			if ctx.Err() == nil {
				found[i] = p.note(to, w, mtu, err)
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	return slices.Contains(found, true)
}

// note keeps what was found of a way as it was asked; of one that is silent, what was known.
func (p *paths) note(to netip.Addr, asked way, mtu int, err error) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.ways[to]
	if !ok || w.from != asked.from || w.most != asked.most {
		return false // it is another way now, and due
	}
	now := time.Now()
	w.looked = now
	if err != nil {
		if w.silences == 0 {
			p.log.Debug("the path MTU to a peer is not known", "peer", w.peer, "to", to, "error", err)
		}
		w.due = now.Add(min(lookEvery, lookAgain<<min(w.silences, 10)))
		w.silences++
		p.ways[to] = w
		return false
	}
	if mtu >= w.most {
		mtu = 0
	}
	changed = mtu != w.mtu
	if changed {
		p.log.Info("the path to a peer has another MTU", "peer", w.peer, "to", to, "was", cmp.Or(w.mtu, w.most), "is", cmp.Or(mtu, w.most), "sent", w.most)
	}
	w.mtu, w.silences, w.due = mtu, 0, now.Add(lookEvery-rand.N(lookEvery/10))
	p.ways[to] = w
	return changed
}

// known is what was found, sorted by peer.
func (p *paths) known() (all []Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for to, w := range p.ways {
		if w.alive {
			all = append(all, Path{Peer: w.peer, To: to, MTU: w.mtu, Most: w.most, Silent: w.silences > 0})
		}
	}
	slices.SortFunc(all, func(a, b Path) int { return strings.Compare(a.Peer, b.Peer) })
	return all
}

// followPaths looks for the MTU of the ways to the other peers, and writes the routes as it
// changes, until ctx ends.
func (n *Network) followPaths(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for _, like := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		wait.Go(func() {
			err := pathmtu.Listen(ctx, like, n.paths.told)
			if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
				n.log.Warn("path MTUs that change are found by the next look only", "error", err, "every", lookEvery)
			}
		})
	}
	n.paths.run(ctx, n.reroute)
}

// reroute writes the peers with the path MTUs of now.
func (n *Network) reroute() {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	if len(n.peers) == 0 {
		return
	}
	if err := n.overlay.SetPeers(n.measured()); err != nil && !overlay.OnlyNoAddress(err) {
		n.log.Error("routes do not have the path MTUs that were found, which are written with the next change", "error", err)
	}
}

// measured are the peers with what is known of the ways there. Under overlayMu.
func (n *Network) measured() []Peer {
	peers := slices.Clone(n.peers)
	for i, p := range peers {
		peers[i].PathMTU = n.paths.mtu(p.Endpoint)
	}
	return peers
}

// watchPaths says which paths there are. Under overlayMu, whenever what it says may have changed.
func (n *Network) watchPaths() {
	want := map[netip.Addr]way{}
	for _, p := range n.peers {
		// Who is hidden looks itself; its address is perhaps somebody else's here.
		if p.Endpoint.IsValid() && p.Endpoint.Is4() == n.address.Is4() && !p.Hidden {
			want[p.Endpoint] = way{peer: p.Name, from: n.address, alive: p.Alive, most: overlay.Most(n.backend, int(n.mtu.Load()), p.Endpoint)}
		}
	}
	n.paths.set(want)
}

// Paths are the ways to the other peers that live, as they were found last; with look they
// are looked at before, which takes some seconds where one carries less or is silent. nil before
// Ready.
func (n *Network) Paths(ctx context.Context, look bool) []Path {
	select {
	case <-n.ready:
	default:
		return nil
	}
	if look && n.paths.look(ctx, n.paths.living()) {
		n.reroute()
	}
	backend, mtu := n.Backend(), int(n.mtu.Load())
	all := n.paths.known()
	for i, p := range all {
		if all[i].Room = mtu; p.MTU > 0 {
			all[i].Room = min(mtu, overlay.Room(backend, p.MTU, p.To))
		}
	}
	return all
}
