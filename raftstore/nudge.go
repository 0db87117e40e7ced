package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// nudger tells followers of a commit at once. Raft tells them with the next
// entry, or after CommitTimeout: a lone write through a follower would wait for
// that, for it is acknowledged when the follower has applied it. What is sent is
// what Raft would send, an AppendEntries without entries.
type nudger struct {
	wg sync.WaitGroup
	mu sync.Mutex
	at map[raft.ServerID]*nudgeState
}

// nudgeState is what a follower is being told. One request at a time is on its way.
type nudgeState struct {
	busy  bool
	again bool // there was more to tell meanwhile
}

// nudge is called on the leader when entries were applied and no others are on
// their way. It does not block.
func (r *Replicated) nudge() {
	rf := r.raft.Load()
	select {
	case <-r.closing:
		return
	default:
	}
	for _, s := range rf.GetConfiguration().Configuration().Servers {
		if s.ID != raft.ServerID(r.cfg.Name) {
			r.nudger.start(s, func() { r.tellCommit(rf, s) })
		}
	}
}

func (n *nudger) start(s raft.Server, tell func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.at[s.ID]
	if st == nil {
		st = &nudgeState{}
		n.at[s.ID] = st
	}
	if st.again = st.busy; st.busy {
		return
	}
	st.busy = true
	n.wg.Go(func() {
		for {
			tell()
			n.mu.Lock()
			if !st.again {
				st.busy = false
				n.mu.Unlock()
				return
			}
			st.again = false
			n.mu.Unlock()
		}
	})
}

// tellCommit sends what this peer, the leader of a term, has seen committed in
// that term. It stays true whatever becomes of the leadership, and a follower in a
// later term ignores it.
func (r *Replicated) tellCommit(rf *raft.Raft, to raft.Server) {
	lead := r.lead.Load()
	index, term := r.fsm.position()
	if lead == nil || lead.term != term {
		return
	}
	trans := r.trans.Load()
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax,
			ID:              []byte(r.cfg.Name),
			Addr:            trans.EncodePeer(raft.ServerID(r.cfg.Name), trans.LocalAddr()),
		},
		Term:              term,
		PrevLogEntry:      index,
		PrevLogTerm:       term,
		LeaderCommitIndex: index,
	}
	// A follower that is not reached, or does not have the entry yet, learns it from Raft.
	if err := trans.AppendEntries(to.ID, to.Address, req, &raft.AppendEntriesResponse{}); err != nil {
		r.cfg.Logger.Debug("could not tell of a commit", "peer", to.ID, "err", err)
	}
}
