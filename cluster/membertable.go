package cluster

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// memberTable is what gossip has told, kept apart from memberlist so that a reader
// never waits for gossip and gossip never for a reader. Memberlist calls its
// delegates with its own lock held: nothing here calls it back.
type memberTable struct {
	self string

	mu      sync.Mutex
	members map[string]*memberEntry
	subs    map[chan struct{}]struct{}
}

type memberEntry struct {
	Member
	leaving bool
	lastAck time.Time
}

func newMemberTable(self string) *memberTable {
	return &memberTable{self: self, members: make(map[string]*memberEntry), subs: make(map[chan struct{}]struct{})}
}

// heard records a member that is alive, with what it says of itself.
func (t *memberTable) heard(name string, addr netip.AddrPort, m meta, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil {
		e = &memberEntry{Member: Member{Name: name, Self: name == t.self}}
		t.members[name] = e
	}
	before := e.Member
	if !e.State.Up() {
		// The time until the first probe is not held against it.
		e.State, e.Since, e.lastAck = StateAlive, now, now
	}
	e.Address, e.GossipPort, e.Port = addr.Addr(), addr.Port(), m.Port
	e.Version, e.Witness, e.Hidden, e.Fingerprint = m.Version, m.Witness, m.Hidden, m.Key
	e.WireGuardKey, e.WireGuardPort = m.WGKey, m.WGPort
	e.Started, e.leaving = time.Unix(m.Started, 0), m.Leaving
	e.WireGuardStarted = time.Time{}
	if m.WGStarted != 0 {
		e.WireGuardStarted = time.Unix(0, m.WGStarted)
	}
	if before != e.Member {
		t.wake()
	}
}

func (t *memberTable) gone(name string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil || !e.State.Up() {
		return
	}
	e.State, e.Since = StateDead, now
	if e.leaving {
		e.State = StateLeft
	}
	t.wake()
}

// acked records an answered probe. It wakes nobody: that would be an event for each probe.
func (t *memberTable) acked(name string, rtt time.Duration, index uint64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.members[name]; e != nil {
		e.RTT, e.lastAck, e.Index = rtt, now, index
	}
}

// learn adds peers that gossip has not met, from peers.json or the records.
func (t *memberTable) learn(name, fingerprint string, api, gossip netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.members[name] != nil || name == t.self {
		return
	}
	t.members[name] = &memberEntry{Member: Member{Name: name, Address: api.Addr(), Port: api.Port(), GossipPort: gossip.Port(), Fingerprint: fingerprint}}
	t.wake()
}

func (t *memberTable) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.members[name]; ok {
		delete(t.members, name)
		t.wake()
	}
}

// changed wakes the subscribers for what is not in the table.
func (t *memberTable) changed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wake()
}

// wake must be called with mu held. It never blocks: a subscriber that has not
// looked since the last wake-up will see this change too.
func (t *memberTable) wake() {
	for c := range t.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (t *memberTable) subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	c <- struct{}{} // the state at the time of subscribing is news
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subs[c] = struct{}{}
	return c, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.subs, c)
	}
}

func (t *memberTable) get(name string) (Member, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil {
		return Member{}, false
	}
	return e.Member, true
}

// snapshot returns all members by ascending name. Memberlist does not tell of
// suspicion, so it is derived: a member that should have been probed twice since it last
// answered is suspect. In n peers each is probed once in n-1 intervals.
func (t *memberTable) snapshot(probe time.Duration, now time.Time) []Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	up := 0
	for _, e := range t.members {
		if e.State.Up() {
			up++
		}
	}
	late := 2 * time.Duration(max(up-1, 1)) * probe
	out := make([]Member, 0, len(t.members))
	for _, name := range slices.Sorted(maps.Keys(t.members)) {
		e := t.members[name]
		m := e.Member
		if m.State == StateAlive && !m.Self && now.Sub(e.lastAck) > late {
			m.State = StateSuspect
		}
		out = append(out, m)
	}
	return out
}

// lost marks everybody else as not met, when gossip starts anew.
func (t *memberTable) lost(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.members {
		if e.State.Up() && !e.Self {
			e.State, e.Since = StateUnknown, now
		}
	}
	t.wake()
}
