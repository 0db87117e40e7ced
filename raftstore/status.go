package raftstore

import (
	"slices"

	"github.com/hashicorp/raft"
)

// Status is what a peer knows of the cluster.
type Status struct {
	Name   string
	Role   string // "leader", "follower", "candidate", "shutdown" or "starting"
	Leader string // name of the leader; "" if none is known
	Term   uint64
	// LastIndex is of the newest entry in this peer's log, Committed of the
	// newest that it knows to be committed, Applied of the newest in its state.
	LastIndex, Committed, Applied uint64
	Revision                      int64    // of its state
	Voters, Nonvoters             []string // sorted; empty if it was never in a cluster
	Missing                       []string // voters that Config.Alive says are not reachable, sorted
}

// Status tells how this peer and the cluster are. It does not block.
func (r *Replicated) Status() Status {
	s := Status{Name: r.cfg.Name, Role: "starting", Revision: r.Revision(), Leader: r.Leader(), Applied: r.fsm.applied.get()}
	rf := r.raft.Load()
	if rf == nil {
		return s
	}
	s.Role = roleOf(rf.State())
	s.Term, s.LastIndex, s.Committed = rf.CurrentTerm(), rf.LastIndex(), rf.CommitIndex()
	s.Voters, s.Nonvoters = r.servers()
	s.Missing = r.missing(s.Voters)
	return s
}

func roleOf(s raft.RaftState) string {
	switch s {
	case raft.Leader:
		return "leader"
	case raft.Follower:
		return "follower"
	case raft.Candidate:
		return "candidate"
	default:
		return "shutdown"
	}
}

// Leader is the name of the leader as far as this peer knows, "" if it knows none.
func (r *Replicated) Leader() string {
	rf := r.raft.Load()
	if rf == nil {
		return ""
	}
	leader, _ := rf.LeaderWithID()
	return string(leader)
}

// IsLeader tells whether this peer leads and its state holds all that was
// acknowledged before its term.
func (r *Replicated) IsLeader() bool { return r.lead.Load() != nil }

// Started is closed when Run has loaded the state from disk and takes part in the cluster.
func (r *Replicated) Started() <-chan struct{} { return r.started }

// Raft is for who manages membership (raft-autopilot): AddVoter, AddNonvoter,
// DemoteVoter, RemoveServer, GetConfiguration, Stats, LeadershipTransfer. ID and
// address of a server are both the peer's name. nil before Started. Entries must
// not be appended through it, barriers included: read-indexes count on that.
func (r *Replicated) Raft() *raft.Raft { return r.raft.Load() }

func (r *Replicated) servers() (voters, nonvoters []string) {
	for _, s := range r.raft.Load().GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, string(s.ID))
		} else {
			nonvoters = append(nonvoters, string(s.ID))
		}
	}
	slices.Sort(voters)
	slices.Sort(nonvoters)
	return voters, nonvoters
}

func (r *Replicated) missing(voters []string) []string {
	if r.cfg.Alive == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(voters), func(v string) bool { return v == r.cfg.Name || r.cfg.Alive(v) })
}

func (r *Replicated) noQuorum() error {
	if r.raft.Load() == nil {
		return &NoQuorumError{}
	}
	voters, _ := r.servers()
	return &NoQuorumError{Missing: r.missing(voters), Voters: len(voters)}
}
