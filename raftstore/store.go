// Package raftstore holds what the cluster wants: a revisioned key-value state
// with compare-and-set transactions, watches and lists at a revision.
//
// There are two implementations of [Store]. [Memory] is the state machine
// alone; [Replicated] is the same state machine under Raft, on disk, on every
// peer. Both pass the suite in raftstore/storetest.
//
// The package knows nothing of Kubernetes, of membership or of how bytes reach
// another peer: cmd/rookery hands it a [Transport]. It is called by apiserver
// (every API object is a key), by cluster (peer records, tokens) and by
// cmd/rookery.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// KV is one key and its value as of ModRevision. It is immutable: neither the
// store nor a caller may change Value after the KV has been handed out.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision int64 // revision of the transaction that created the key
	ModRevision    int64 // revision of the transaction that last wrote it
	// Expires is the time, in Unix seconds and by the proposer's clock, after
	// which the leader deletes the key; 0 means never.
	Expires int64

	memo atomic.Pointer[any]
}

// Memo returns the value that build made of kv the first time it was asked, so
// that a decoded object can live as long as its bytes. build may run more than
// once under contention; one result wins. A build error is returned and not kept.
func (kv *KV) Memo(build func(*KV) (any, error)) (any, error) {
	if v := kv.memo.Load(); v != nil {
		return *v, nil
	}
	v, err := build(kv)
	if err != nil {
		return nil, err
	}
	kv.memo.CompareAndSwap(nil, &v)
	return *kv.memo.Load(), nil
}

// Op is one condition with one write of a [Txn].
type Op struct {
	Key string
	// If is the ModRevision that Key must have for the transaction to happen:
	// 0 means the key must not exist, [Any] means no condition.
	If int64
	// Value is written when Kind is Put.
	Value []byte
	Kind  OpKind
	// TTL is how long a Put key lives; 0 means for ever. The proposer turns it
	// into a time, so that every peer computes the same state. Rounded up to
	// full seconds.
	TTL time.Duration
}

// Any is the [Op] condition that always holds.
const Any int64 = -1

// OpKind says what an [Op] does when all conditions of its Txn hold.
type OpKind uint8

const (
	Check  OpKind = iota // only the condition
	Put                  // write Value
	Delete               // remove Key; removing an absent key is not an error
)

// Txn is applied whole or not at all: every condition is checked against the
// same revision, then every write gets the same new revision.
// A Txn that writes nothing does not advance the revision.
type Txn []Op

// Result is what became of a [Txn].
type Result struct {
	// Revision is that of the state right after the transaction.
	Revision int64
	// Applied is false when a condition did not hold; then nothing was written.
	Applied bool
	// Current has, for each Op by index, the key as it was before the
	// transaction; nil where the key did not exist.
	Current []*KV
}

// Event is one change of one key.
type Event struct {
	Revision int64
	Key      string
	KV       *KV // nil: deleted
	Prev     *KV // nil: created
}

// ListResult is one page of keys in ascending order.
type ListResult struct {
	KVs      []*KV
	Revision int64 // of the state that was read
	More     bool  // keys of the prefix remain beyond the last one returned
	Total    int64 // keys of the prefix from start on, returned or not
}

// Store is a revisioned key-value state. Revisions start at 1 (the empty
// state), grow by one with each transaction that writes and never go back, not
// even over a restore. All methods may be called concurrently.
//
// Reads are of this peer's own state and do not block on the network; call
// [Store.Sync] first for a linearizable read.
type Store interface {
	// Revision is the newest one this peer has applied.
	Revision() int64
	// CompactRevision is the newest revision that can no longer be watched from.
	CompactRevision() int64
	// Get returns the key's value, nil if absent, and the revision that was read.
	Get(key string) (*KV, int64)
	// List returns up to limit keys (0: all) that begin with prefix and are not
	// before start ("": from the first). at is the revision to read, 0 for the newest.
	// [ErrCompacted] if at is no longer held, a [FutureRevisionError] if it is
	// not there yet.
	List(prefix, start string, at int64, limit int) (ListResult, error)
	// Watch delivers every change of keys that begin with prefix and that came
	// after revision from, in order and none twice; see [Watcher].
	// [ErrCompacted] if the history no longer reaches back to from, a
	// [FutureRevisionError] if from is not there yet.
	Watch(prefix string, from int64) (*Watcher, error)
	// Txn proposes a transaction and returns when it is durable on a majority
	// and applied on this peer. A condition that does not hold is no error
	// (Result.Applied). It is forwarded to the leader when this peer is not it.
	// Without quorum it fails with a [NoQuorumError], within the deadline of ctx or
	// five seconds, whichever is sooner; with the error of ctx if that deadline leaves
	// less time than an election takes, because nothing is known of quorum then. After these,
	// [ErrDiskFull] and [ErrTooLarge] it has not happened; after any other error it may or may
	// not have.
	Txn(ctx context.Context, txn Txn) (Result, error)
	// Sync returns when this peer's state is at least as new as everything that
	// was acknowledged anywhere before the call (read-index). [NoQuorumError] as for Txn.
	Sync(ctx context.Context) error
}

var (
	// ErrCompacted says that the revision asked for is older than the history kept.
	ErrCompacted = errors.New("revision is compacted")
	// ErrTooLarge says that a transaction exceeds [MaxTxnBytes].
	ErrTooLarge = errors.New("transaction is too large")
	// ErrClosed says that the store has been shut down.
	ErrClosed = errors.New("store is closed")
)

// MaxTxnBytes bounds a transaction: 4 MiB, above the 3 MiB that the Kubernetes
// API takes as a request body.
const MaxTxnBytes = 4 << 20

// NoQuorumError says that too few voters can be reached to agree on anything.
type NoQuorumError struct {
	Missing []string // names of voters that are not reachable, sorted; empty if unknown
	Voters  int      // how many voters there are, 0 if unknown
}

func (e *NoQuorumError) Error() string {
	switch missing := strings.Join(e.Missing, ", "); {
	case missing == "":
		return "no quorum: the cluster has no leader right now"
	case 2*len(e.Missing) < e.Voters: // others may be on their way to be found missing, or elect one
		return fmt.Sprintf("no quorum: the cluster has no leader right now; of its %d voters %s cannot be reached", e.Voters, missing)
	}
	return fmt.Sprintf("no quorum: %d of %d voters are not reachable (%s); start them or reconnect them",
		len(e.Missing), e.Voters, strings.Join(e.Missing, ", "))
}

// FutureRevisionError says that the state has not reached the revision asked for.
type FutureRevisionError struct{ Asked, Current int64 }

func (e *FutureRevisionError) Error() string {
	return fmt.Sprintf("revision %d is not there yet, the newest is %d", e.Asked, e.Current)
}
