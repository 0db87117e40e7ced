package raftstore

import (
	"fmt"
	"time"
	"unsafe"
)

// maxOps bounds the operations of one transaction, so that a small frame
// cannot make a peer allocate much. Kubernetes needs a handful.
const maxOps = 4096

// op is an [Op] on its way into the log.
type op struct {
	key   string
	cond  int64
	kind  OpKind
	value []byte
	// life is a TTL in nanoseconds until the proposer has stamped the op, and
	// from then on the KV.Expires it results in. 0 is for ever in both.
	life int64
}

// prepare checks txn and turns it into unstamped ops. The values are not copied:
// apply copies them when they enter the state.
func prepare(txn Txn) ([]op, error) {
	if len(txn) > maxOps {
		return nil, fmt.Errorf("%d operations, at most %d are allowed: %w", len(txn), maxOps, ErrTooLarge)
	}
	size := 0
	ops := make([]op, len(txn))
	for i, o := range txn {
		size += len(o.Key) + len(o.Value)
		if err := checkOp(o); err != nil {
			return nil, fmt.Errorf("operation %d on key %q: %w", i, o.Key, err)
		}
		if o.Kind != Check && writesBefore(txn[:i], o.Key) {
			return nil, fmt.Errorf("operation %d: key %q is written twice in one transaction", i, o.Key)
		}
		ops[i] = op{key: o.Key, cond: o.If, kind: o.Kind}
		if o.Kind == Put {
			ops[i].value, ops[i].life = o.Value, int64(o.TTL)
		}
	}
	if size > MaxTxnBytes {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed: %w", size, MaxTxnBytes, ErrTooLarge)
	}
	return ops, nil
}

func checkOp(o Op) error {
	switch {
	case o.Key == "":
		return fmt.Errorf("the key is empty")
	case o.If < Any:
		return fmt.Errorf("condition %d is neither a revision nor Any", o.If)
	case o.Kind > Delete:
		return fmt.Errorf("kind %d is unknown", o.Kind)
	case o.TTL < 0:
		return fmt.Errorf("TTL %s is negative", o.TTL)
	case o.TTL > 0 && o.Kind != Put:
		return fmt.Errorf("a TTL is only for Put")
	}
	return nil
}

func writesBefore(txn Txn, key string) bool {
	for _, o := range txn {
		if o.Kind != Check && o.Key == key {
			return true
		}
	}
	return false
}

// stamp turns TTLs into times. Only the proposer calls it, so that every peer
// applies the same ones; the proposer is the leader, which also deletes what has
// expired, so that one clock decides both.
func stamp(ops []op, now time.Time) {
	for i := range ops {
		if ops[i].life <= 0 {
			continue
		}
		at := now.Add(time.Duration(ops[i].life))
		ops[i].life = at.Unix()
		if at.Nanosecond() > 0 {
			ops[i].life++
		}
	}
}

// expireTxn deletes kv unless it was written again since.
func expireTxn(kv *KV) []op {
	return []op{{key: kv.Key, cond: kv.ModRevision, kind: Delete}}
}

// bytesOf is s as bytes without a copy, for trees that never write to their
// keys: it halves what a key costs.
func bytesOf(s string) []byte {
	return unsafe.Slice(unsafe.StringData(s), len(s))
}
