package raftstore

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// restTimeout is HeartbeatTimeout and ElectionTimeout while the leader is there. A
// leader sends heartbeats ten times in it, to each follower, for ever: at 800 ms they
// are what an idle peer spends most on. It is what is left to those who cannot be told
// by anybody else that the leader is gone.
const restTimeout = 2 * time.Second

// turn keeps those who miss the leader from voting for themselves all at once. It is
// longer than an election, and than gossip takes from one to the other.
const turn = 250 * time.Millisecond

// runPace lengthens Raft's timeouts while Config.Alive vouches for the leader, and
// shortens them to the configured ones as soon as it does not: the death of a leader is
// then met sooner than heartbeats would tell of it. Who still hears the leader does not
// take anybody's word for its death. It returns when ctx ends.
func (r *Replicated) runPace(ctx context.Context, rf *raft.Raft) {
	if r.cfg.Subscribe == nil {
		return
	}
	changes := r.cfg.Subscribe()
	resting := false
	var missed time.Time // since when the leader is not vouched for
	for {
		changed := r.changed.wait()
		leader := r.Leader()
		rest := leader != "" && (leader == r.cfg.Name || r.cfg.Alive(leader))
		if rest || leader == "" {
			missed = time.Time{}
		} else if missed.IsZero() {
			missed = time.Now()
		}
		var due <-chan time.Time
		switch {
		case rest == resting:
		case rest:
			resting = r.setTimeouts(rf, restTimeout, restTimeout)
		default:
			if wait := r.hurryIn(rf, leader, missed); wait > 0 {
				due = time.After(wait)
				break
			}
			resting = !r.setTimeouts(rf, r.cfg.HeartbeatTimeout, r.cfg.ElectionTimeout)
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-changed:
		case <-due:
		}
	}
}

// hurryIn is how long to wait until Raft looks for another leader. Who looks has forgotten
// the old one, and is refused by those who have not, so the last of a majority is elected.
func (r *Replicated) hurryIn(rf *raft.Raft, leader string, missed time.Time) time.Duration {
	if leader == "" {
		return 0
	}
	voters, _ := r.servers()
	living := slices.DeleteFunc(voters, func(v string) bool { return v != r.cfg.Name && (v == leader || !r.cfg.Alive(v)) })
	mine := missed.Add(turn * time.Duration(max(0, slices.Index(living, r.cfg.Name))))
	return max(time.Until(mine), r.cfg.HeartbeatTimeout-time.Since(rf.LastContact()))
}

// setTimeouts tells whether Raft took them.
func (r *Replicated) setTimeouts(rf *raft.Raft, heartbeat, election time.Duration) bool {
	c := rf.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = heartbeat, election
	if err := rf.ReloadConfig(c); err != nil {
		r.cfg.Logger.Error("could not change Raft's timeouts", "err", err)
		return false
	}
	return true
}
