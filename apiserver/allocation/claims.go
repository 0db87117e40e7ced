// Package allocation hands out what Services need and no two may have: addresses and
// node ports, each at most once in the whole cluster, whichever peer is asked.
package allocation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// errTaken says that a claim is held already.
var errTaken = errors.New("already taken")

// claims hands out names of one kind, node ports, each at most once in the whole
// cluster: a claim is a key that is put only if absent, so that races between
// peers are settled by the store, and claims survive everything that the store
// survives. Service addresses are claimed by objects, see [Addresses].
//
// A peer that dies between a claim and the write of its Service leaves an
// orphan; [Repair] releases it.
type claims struct {
	store  raftstore.Store
	prefix string // ends in "/"
}

// claimTimeout bounds one claim; it is above the five seconds within which the
// store itself gives up without quorum, so that its clearer error wins.
const claimTimeout = 10 * time.Second

// take claims name, or returns errTaken.
func (c claims) take(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	res, err := c.store.Txn(ctx, raftstore.Txn{{Key: c.prefix + name, If: 0, Kind: raftstore.Put, Value: []byte{1}}})
	if err != nil {
		return fmt.Errorf("claim %s: %w", name, err)
	}
	if !res.Applied {
		return errTaken
	}
	return nil
}

// release gives name back. Releasing what is not claimed is no error.
func (c claims) release(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	if _, err := c.store.Txn(ctx, raftstore.Txn{{Key: c.prefix + name, If: raftstore.Any, Kind: raftstore.Delete}}); err != nil {
		return fmt.Errorf("release %s: %w", name, err)
	}
	return nil
}

// has tells whether name is claimed as far as this peer knows.
func (c claims) has(name string) bool {
	kv, _ := c.store.Get(c.prefix + name)
	return kv != nil
}

// all returns the claimed names with the revision of each claim.
func (c claims) all() (map[string]int64, error) {
	list, err := c.store.List(c.prefix, "", 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list claims under %s: %w", c.prefix, err)
	}
	out := make(map[string]int64, len(list.KVs))
	for _, kv := range list.KVs {
		out[kv.Key[len(c.prefix):]] = kv.ModRevision
	}
	return out, nil
}
