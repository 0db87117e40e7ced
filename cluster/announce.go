package cluster

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Announce keeps this peer's own record as self says, writing only when
// something differs: after DHCP gave another address, or an upgrade another version. It looks when
// wake fires and, while the store refuses (no quorum), again with backoff. It blocks until
// ctx ends, or returns [ErrRemoved] or [ErrNameTaken], which only a human can cure.
func (r *Registry) Announce(ctx context.Context, self func() Peer, wake <-chan struct{}, log *slog.Logger) error {
	const first, most = time.Second, 30 * time.Second
	backoff := first
	for {
		retry := (<-chan time.Time)(nil)
		switch err := r.announce(ctx, self()); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRemoved), errors.Is(err, ErrNameTaken):
			return err
		case err != nil:
			log.Warn("peer record is not up to date", "error", err, "retry", backoff)
			retry = time.After(backoff)
			backoff = min(2*backoff, most)
		default:
			backoff = first
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-retry:
		}
	}
}

// announce asks the store's leader only if the local state differs: gossip wakes often.
func (r *Registry) announce(ctx context.Context, self Peer) error {
	if old, err := r.Peer(self.Name); err == nil {
		if old.Removing {
			return nil // until it is gone this peer still votes, and may be needed for that
		}
		self.PodCIDR, self.Joined = old.PodCIDR, old.Joined
		if self == old {
			return nil
		}
	}
	_, err := r.Register(ctx, self)
	return err
}
