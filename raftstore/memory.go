package raftstore

import (
	"context"
	"time"
)

// expireBatch bounds how many keys are deleted at once, so that a wave of
// expiring keys does not hold up other writes.
const expireBatch = 128

// Memory is a [Store] in this process alone: the state machine without Raft. It
// is for tests and simulation; nothing survives it.
type Memory struct {
	*state
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store. Keys with a TTL are deleted only while Run runs.
func NewMemory() *Memory {
	return &Memory{state: newState(historyEvents, historyBytes)}
}

// Txn implements [Store]. It does not block.
func (m *Memory) Txn(ctx context.Context, txn Txn) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	ops, err := prepare(txn)
	if err != nil {
		return Result{}, err
	}
	stamp(ops, time.Now())
	m.mu.RLock()
	closed := m.closed
	m.mu.RUnlock()
	if closed {
		return Result{}, ErrClosed
	}
	return m.apply([][]op{ops})[0], nil
}

// Sync implements [Store]: there is no other peer, so there is nothing to wait for.
func (m *Memory) Sync(ctx context.Context) error { return ctx.Err() }

// Run deletes expired keys until ctx ends, then closes the store: watches end
// and writes fail with [ErrClosed]; reads go on working. It returns nil.
func (m *Memory) Run(ctx context.Context) error {
	defer m.close()
	m.runExpiry(ctx, func(_ context.Context, kvs []*KV) error {
		batch := make([][]op, len(kvs))
		for i, kv := range kvs {
			batch[i] = expireTxn(kv)
		}
		m.apply(batch)
		return nil
	})
	return nil
}

// runExpiry calls remove with keys whose time has come, until ctx ends. While
// nothing expires it only waits.
func (s *state) runExpiry(ctx context.Context, remove func(context.Context, []*KV) error) {
	for ctx.Err() == nil {
		if kvs := s.expired(time.Now(), expireBatch); len(kvs) > 0 {
			if remove(ctx, kvs) == nil {
				continue
			}
			// remove reports its own errors. A second: as long as a TTL is exact.
			s.sleepUntilExpiry(ctx, time.Second)
			continue
		}
		wait := time.Duration(-1)
		if at, ok := s.nextExpiry(); ok {
			// Looked at again after an hour at the latest, for clocks are set.
			wait = min(max(time.Until(at), 0), time.Hour)
		}
		s.sleepUntilExpiry(ctx, wait)
	}
}

// sleepUntilExpiry waits for wait (for ever if negative), a nearer expiry or the end of ctx.
func (s *state) sleepUntilExpiry(ctx context.Context, wait time.Duration) {
	var due <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-due:
	case <-s.expiryChanged:
	case <-ctx.Done():
	}
}
