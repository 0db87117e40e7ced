package voters

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func now() time.Time { return time.Unix(1_000_000, 0) }

// parse reads "a:voter,alive,60s b:replica,dead,60s c:absent,alive,60s d:voter,unrecorded,alive":
// where it is in Raft, its state and for how long. The first is the leader.
func parse(t *testing.T, text string) Snapshot {
	t.Helper()
	s := Snapshot{Now: now()}
	for i, f := range strings.Fields(text) {
		name, rest, _ := strings.Cut(f, ":")
		if i == 0 {
			s.Self = name
		}
		p := Peer{Name: name, CaughtUp: true, Since: now().Add(-time.Hour)}
		unrecorded := false
		for _, w := range strings.Split(rest, ",") {
			switch w {
			case "voter", "replica":
				s.Servers = append(s.Servers, Server{name, w == "voter"})
			case "alive":
				p.Alive = true
			case "behind":
				p.CaughtUp = false
			case "unrecorded":
				unrecorded = true
			case "leaving":
				p.Leaving = true
			case "hidden":
				p.Hidden = true
			case "unmet":
				p.Unmet = true
			case "dead", "absent":
			default:
				d, err := time.ParseDuration(w)
				if err != nil {
					t.Fatal(err)
				}
				p.Since = now().Add(-d)
			}
		}
		if !unrecorded {
			s.Peers = append(s.Peers, p)
		}
	}
	return s
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct{ name, state, want string }{
		{"alone", "a:voter,alive", ""},
		{"no records yet", "a:voter,unrecorded b:replica,unrecorded", ""},
		{"a newcomer", "a:voter,alive b:absent,alive", "add replica b"},
		{"a newcomer that is down", "a:voter,alive b:absent,dead", "add replica b"},
		{"two: one votes", "a:voter,alive b:replica,alive", ""},
		{"three: the first step", "a:voter,alive b:replica,alive c:replica,alive", "promote b"},
		{"three: the second step", "a:voter,alive b:voter,alive c:replica,alive", "promote c"},
		{"three: done", "a:voter,alive b:voter,alive c:voter,alive", ""},
		{"three, one down: two voters are worse than one", "a:voter,alive b:replica,alive c:replica,dead", ""},
		{"three, one just up", "a:voter,alive b:replica,alive c:replica,alive,1s", ""},
		{"three, one behind", "a:voter,alive b:replica,alive c:replica,alive,behind", ""},
		{"dead for a moment", "a:voter,alive b:voter,alive c:voter,dead,5s d:replica,alive", ""},
		{"dead for long", "a:voter,alive b:voter,alive c:voter,dead,15s d:replica,alive", "promote d"},
		{"replaced", "a:voter,alive b:voter,alive c:voter,dead,15s d:voter,alive", "demote c"},
		{"dead, nobody to replace it", "a:voter,alive b:voter,alive c:voter,dead,15s", ""},
		{"back again", "a:voter,alive b:voter,alive c:replica,alive d:voter,alive", ""},
		{"five", "a:voter,alive b:voter,alive c:voter,alive d:replica,alive e:replica,alive", "promote d"},
		{"six", "a:voter,alive b:voter,alive c:voter,alive d:voter,alive e:voter,alive f:replica,alive", ""},
		{"a replica's record is gone", "a:voter,alive b:replica,unrecorded", "remove b"},
		{"a voter's record is gone", "a:voter,alive b:voter,alive c:voter,unrecorded", "remove c"},
		{"and then one is too many", "a:voter,alive b:voter,alive", "demote b"},
		{"a voter's record is gone, a quorum would be too", "a:voter,alive b:voter,dead,60s c:voter,unrecorded", ""},
		{"two are to go: the dead one first", "a:voter,alive b:voter,unrecorded c:voter,alive,leaving", "remove b"},
		{"hidden ones vote last", "a:voter,alive b:replica,alive,hidden c:replica,alive,10s d:replica,alive,5s", "promote c"},
		{"hidden ones vote where there are no others", "a:voter,alive b:voter,alive c:replica,alive,hidden", "promote c"},
		{"a hidden leader meets all", "a:voter,alive,hidden b:voter,alive c:voter,alive", ""},
		{"a hidden leader does not meet another", "a:voter,alive,hidden b:voter,alive,hidden,unmet c:voter,alive", "transfer leadership c"},
		{"a hidden leader, and nobody is better", "a:voter,alive,hidden b:voter,alive,hidden,unmet c:voter,alive,hidden", ""},
		{"a leader that others can dial stays", "a:voter,alive b:voter,alive,unmet c:voter,alive", ""},
		{"the leader is to go", "a:voter,alive,leaving b:voter,alive c:voter,alive d:voter,alive", "transfer leadership b"},
		{"the only voter is to go: first another", "a:voter,alive,leaving b:replica,alive", "promote b"},
		{"the only voter is to go: then lead", "a:voter,alive,leaving b:voter,alive", "transfer leadership b"},
		{"the old leader is to go", "b:voter,alive a:voter,alive,leaving", "remove a"},
		{"the only voter is to go, the other is down", "a:voter,alive,leaving b:replica,dead", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, c := range Plan(parse(t, tc.state)) {
				got = append(got, fmt.Sprintf("%s %s", c.Kind, c.Name))
			}
			if s := strings.Join(got, "; "); s != tc.want {
				t.Errorf("Plan(%s)\n got %q\nwant %q", tc.state, s, tc.want)
			}
		})
	}
}

func genSnapshot(t *rapid.T) Snapshot {
	s := Snapshot{Now: now(), Self: "p0"}
	n := rapid.IntRange(1, 9).Draw(t, "machines")
	for i := range n {
		name := fmt.Sprintf("p%d", i)
		where := rapid.SampledFrom([]string{"voter", "replica", "absent"}).Draw(t, "where "+name)
		if i == 0 {
			where = "voter"
		}
		if where != "absent" {
			s.Servers = append(s.Servers, Server{name, where == "voter"})
		}
		if i == 0 || rapid.IntRange(0, 9).Draw(t, "record "+name) > 0 {
			s.Peers = append(s.Peers, Peer{Name: name,
				Leaving:  rapid.IntRange(0, 9).Draw(t, "leaving "+name) == 0,
				Alive:    i == 0 || rapid.Bool().Draw(t, "alive "+name),
				CaughtUp: rapid.Bool().Draw(t, "caught up "+name),
				Hidden:   rapid.Bool().Draw(t, "hidden "+name),
				Unmet:    rapid.Bool().Draw(t, "unmet "+name),
				Since:    now().Add(-time.Duration(rapid.IntRange(0, 30).Draw(t, "since "+name)) * time.Second)})
		}
	}
	return s
}

func apply(s Snapshot, c Change) Snapshot {
	s.Servers = slices.Clone(s.Servers)
	i := slices.IndexFunc(s.Servers, func(x Server) bool { return x.Name == c.Name })
	switch c.Kind {
	case AddReplica:
		s.Servers = append(s.Servers, Server{c.Name, false})
	case Promote:
		s.Servers[i].Voter = true
	case Demote:
		s.Servers[i].Voter = false
	case Remove:
		s.Servers = slices.Delete(s.Servers, i, i+1)
	case Transfer:
		s.Self = c.Name
	}
	return s
}

// quorum counts as healthy who is recorded and alive, and the leader.
func quorum(s Snapshot) (healthy, voters, needed int) {
	for _, srv := range s.Servers {
		if !srv.Voter {
			continue
		}
		voters++
		i := slices.IndexFunc(s.Peers, func(p Peer) bool { return p.Name == srv.Name })
		if srv.Name == s.Self || (i >= 0 && s.Peers[i].Alive) {
			healthy++
		}
	}
	return healthy, voters, voters/2 + 1
}

func recorded(s Snapshot) (n int) {
	for _, p := range s.Peers {
		if !p.Leaving {
			n++
		}
	}
	return n
}

// Whatever the state: no step takes the quorum away, the leader never drops
// itself, and the plan comes to an end at which every recorded peer is a server.
func TestPlanIsSafeAndEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSnapshot(t)
		for step := 0; ; step++ {
			if step > 60 {
				t.Fatalf("no end: %+v", s)
			}
			plan := Plan(s)
			if len(plan) == 0 {
				break
			}
			for _, c := range plan {
				healthy, voters, needed := quorum(s)
				next := apply(s, c)
				healthy2, voters2, needed2 := quorum(next)
				if healthy >= needed && healthy2 < needed2 {
					t.Fatalf("%v takes the quorum: %d of %d before, %d of %d after", c, healthy, voters, healthy2, voters2)
				}
				if voters2 == 0 {
					t.Fatalf("%v leaves no voter", c)
				}
				if c.Name == s.Self && c.Kind != AddReplica {
					t.Fatalf("the leader does %v to itself", c)
				}
				s = next
			}
		}
		if recorded(s) == 0 {
			return
		}
		for _, p := range s.Peers {
			if !p.Leaving && !slices.ContainsFunc(s.Servers, func(x Server) bool { return x.Name == p.Name }) {
				t.Fatalf("%s is recorded and no server", p.Name)
			}
		}
	})
}

// When all peers are well, the end is exactly what was asked for.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSnapshot(t)
		for i := range s.Peers {
			s.Peers[i].Alive, s.Peers[i].CaughtUp, s.Peers[i].Since = true, true, now().Add(-time.Hour)
		}
		if recorded(s) == 0 {
			return
		}
		// Every voter that is not recorded might be dead; only then a quorum can be missing.
		if h, _, need := quorum(s); h < need {
			return
		}
		for range 60 {
			for _, c := range Plan(s) {
				s = apply(s, c)
			}
		}
		_, voters, _ := quorum(s)
		if want := Wanted(recorded(s)); voters != want || len(s.Servers) != recorded(s) {
			t.Fatalf("%d voters and %d servers of %d peers, want %d voters: %+v", voters, len(s.Servers), recorded(s), want, s.Servers)
		}
	})
}
