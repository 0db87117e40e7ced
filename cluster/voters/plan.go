package voters

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Server is one entry of Raft's configuration.
type Server struct {
	Name  string
	Voter bool
}

// Peer is a recorded peer as the leader sees it.
type Peer struct {
	Name  string
	Alive bool
	// Leaving says that it is to be removed from Raft.
	Leaving bool
	// Since is when Alive last changed, by the leader's clock.
	Since time.Time
	// CaughtUp says that its log is so near to the leader's that it could vote at once.
	CaughtUp bool
	// Hidden says that most peers cannot dial it. Others come before it as voters.
	Hidden bool
	// Unmet says that it lives, and the leader can neither dial it nor is dialled by it.
	Unmet bool
}

// Snapshot is all that a decision depends on.
type Snapshot struct {
	Now     time.Time
	Self    string   // the leader
	Servers []Server // Raft's latest configuration
	Peers   []Peer   // the recorded peers
	Timing  Timing
}

// Timing says how long a peer must be as it is before anything is made of it.
type Timing struct {
	// Promote is how long a replica must have been alive; 0: [DefaultPromote].
	Promote time.Duration
	// Replace is how long a voter must have been dead; 0: [DefaultReplace].
	Replace time.Duration
}

const (
	// DefaultPromote is past the start of a daemon, and short enough that
	// three new machines tolerate a failure a few seconds after the last one joined.
	DefaultPromote = 2 * time.Second
	// DefaultReplace is longer than a restart of a daemon or a pulled plug that is put back.
	DefaultReplace = 10 * time.Second
)

// Kind is what a [Change] does.
type Kind uint8

const (
	AddReplica Kind = iota + 1 // a server that does not vote
	Promote                    // a replica becomes a voter
	Demote                     // a voter becomes a replica
	Remove                     // a server goes
	Transfer                   // leadership goes to the named voter
)

func (k Kind) String() string {
	return [...]string{"", "add replica", "promote", "demote", "remove", "transfer leadership"}[k]
}

// Change is one step.
type Change struct {
	Kind Kind
	Name string
	Why  string
}

func (c Change) String() string { return fmt.Sprintf("%s %s: %s", c.Kind, c.Name, c.Why) }

// Wanted is the number of voters among that many recorded peers. An even number
// tolerates no more than the odd one below it.
func Wanted(peers int) int {
	switch {
	case peers >= 5:
		return 5
	case peers >= 3:
		return 3
	case peers >= 1:
		return 1
	}
	return 0
}

// Plan returns the next changes, in order. Those that do not touch voters come first;
// at most one that does, and then the last. An empty plan means that all is as wanted, or
// cannot be bettered now. It never returns a change after which fewer healthy voters than a quorum remain,
// if there were enough before; and none at all without records.
func Plan(s Snapshot) []Change {
	v := newView(s)
	if len(v.peers) == 0 {
		return nil // the records are not here yet: nobody is unrecorded
	}
	plan := v.replicas()
	if c, ok := v.voterChange(); ok {
		return append(plan, c)
	}
	if c, ok := v.handOver(); ok {
		plan = append(plan, c)
	}
	return plan
}

// view is a snapshot with its lookups.
type view struct {
	Snapshot
	peers  map[string]Peer // that are to stay
	alive  map[string]bool // answering, leaving or not
	voters []string        // in the order of preference to keep them
	ready  []string        // replicas that may be promoted, hidden ones last, the longest alive first
	want   int
}

func newView(s Snapshot) *view {
	if s.Timing.Promote == 0 {
		s.Timing.Promote = DefaultPromote
	}
	if s.Timing.Replace == 0 {
		s.Timing.Replace = DefaultReplace
	}
	v := &view{Snapshot: s, peers: make(map[string]Peer, len(s.Peers)), alive: make(map[string]bool, len(s.Peers))}
	for _, p := range s.Peers {
		v.alive[p.Name] = p.Alive
		if !p.Leaving {
			v.peers[p.Name] = p
		}
	}
	v.want = Wanted(len(v.peers))
	for _, srv := range s.Servers {
		p, recorded := v.peers[srv.Name]
		switch {
		case srv.Voter:
			v.voters = append(v.voters, srv.Name)
		case recorded && p.Alive && p.CaughtUp && s.Now.Sub(p.Since) >= s.Timing.Promote:
			v.ready = append(v.ready, srv.Name)
		}
	}
	slices.SortFunc(v.voters, func(a, b string) int {
		return cmp.Or(cmp.Compare(v.rank(a), v.rank(b)), strings.Compare(a, b))
	})
	slices.SortFunc(v.ready, func(a, b string) int {
		return cmp.Or(compareBool(v.peers[a].Hidden, v.peers[b].Hidden), v.peers[a].Since.Compare(v.peers[b].Since), strings.Compare(a, b))
	})
	return v
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// rank orders voters by how much we want to keep them.
func (v *view) rank(name string) int {
	_, recorded := v.peers[name]
	switch {
	case !recorded && !v.healthy(name):
		return 5 // before the healthy ones, which the quorum may need until then
	case !recorded:
		return 4
	case name == v.Self:
		return 0
	case v.healthy(name):
		return 1
	case !v.lost(name):
		return 2
	default:
		return 3
	}
}

// healthy voters answer now. The leader does by definition.
func (v *view) healthy(name string) bool { return name == v.Self || v.alive[name] }

// lost voters have been dead for so long that they are to be replaced.
func (v *view) lost(name string) bool {
	p := v.peers[name]
	return name != v.Self && !p.Alive && v.Now.Sub(p.Since) >= v.Timing.Replace
}

// replicas makes servers of all recorded peers, and removes those that do not
// vote and are not recorded.
func (v *view) replicas() []Change {
	var plan []Change
	servers := make(map[string]bool, len(v.Servers))
	for _, srv := range v.Servers {
		servers[srv.Name] = true
		if _, ok := v.peers[srv.Name]; !ok && !srv.Voter {
			plan = append(plan, Change{Remove, srv.Name, "it is to be removed"})
		}
	}
	for _, p := range v.Peers {
		if !p.Leaving && !servers[p.Name] {
			plan = append(plan, Change{AddReplica, p.Name, "it is recorded"})
		}
	}
	return plan
}

// voterChange is the next step towards the wanted voters: replacements and
// additions before demotions, so that a failure in between finds more voters and not fewer.
func (v *view) voterChange() (Change, bool) {
	keep := 0 // voters that are not to be replaced
	for _, name := range v.voters {
		if v.rank(name) <= 2 {
			keep++
		}
	}
	if c, ok := v.promotion(keep); ok {
		return c, true
	}
	if len(v.voters) == 0 {
		return Change{}, false
	}
	worst := v.voters[len(v.voters)-1]
	switch r := v.rank(worst); {
	case r >= 4 && worst == v.Self:
		return v.transfer()
	case r >= 4 && v.safeWithout(worst):
		return Change{Remove, worst, "it is to be removed"}, true
	case r < 4 && r > 0 && len(v.voters) > v.want && v.safeWithout(worst):
		why := fmt.Sprintf("%d voters are enough", v.want)
		if r == 3 {
			why = fmt.Sprintf("it is dead, and %d others vote", len(v.voters)-1)
		}
		return Change{Demote, worst, why}, true
	}
	return Change{}, false
}

// promotion takes one of the replicas that are ready, if voters lack. Growing
// from an odd number it waits until there are enough to reach the wanted one: two
// voters tolerate less than one. A replacement needs no waiting.
func (v *view) promotion(keep int) (Change, bool) {
	lack := v.want - keep
	if lack <= 0 || len(v.ready) == 0 {
		return Change{}, false
	}
	if len(v.voters) == keep && keep%2 == 1 && len(v.ready) < 2 {
		return Change{}, false
	}
	why := fmt.Sprintf("%d of %d wanted voters", keep, v.want)
	return Change{Promote, v.ready[0], why}, true
}

// transfer hands leadership on when this peer itself is to be removed: the next
// leader does it. That one must be able to, if this peer should not answer any more.
func (v *view) transfer() (Change, bool) {
	if !v.safeWithout(v.Self) {
		return Change{}, false
	}
	for _, name := range v.voters {
		if _, recorded := v.peers[name]; recorded && v.healthy(name) {
			return Change{Transfer, name, "this peer, the leader, is to be removed"}, true
		}
	}
	return Change{}, false
}

// handOver hands leadership on when this peer is hidden, and so is another one, which then
// hears of nothing: each can dial those that are not.
func (v *view) handOver() (Change, bool) {
	unmet := slices.IndexFunc(v.Peers, func(p Peer) bool { return p.Unmet && p.Alive && !p.Leaving && p.Name != v.Self })
	if unmet < 0 || !v.peers[v.Self].Hidden {
		return Change{}, false
	}
	for _, name := range v.voters {
		if p, recorded := v.peers[name]; recorded && p.Alive && !p.Hidden && p.CaughtUp && name != v.Self {
			return Change{Transfer, name, "this peer, the leader, and " + v.Peers[unmet].Name + " cannot dial each other"}, true
		}
	}
	return Change{}, false
}

// safeWithout tells whether the healthy voters are still a quorum when name is none.
func (v *view) safeWithout(name string) bool {
	n, healthy := 0, 0
	for _, x := range v.voters {
		if x == name {
			continue
		}
		n++
		if v.healthy(x) {
			healthy++
		}
	}
	return n > 0 && healthy >= n/2+1
}
