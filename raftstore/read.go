package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Revision implements [Store].
func (s *state) Revision() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision
}

// CompactRevision implements [Store].
func (s *state) CompactRevision() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.hist.compact
}

// Get implements [Store].
func (s *state) Get(key string) (*KV, int64) {
	t, revision := s.view()
	kv, _ := t.Get(bytesOf(key))
	return kv, revision
}

// List implements [Store].
func (s *state) List(prefix, start string, at int64, limit int) (ListResult, error) {
	t, revision, err := s.treeAt(prefix, at)
	if err != nil {
		return ListResult{}, err
	}
	res := ListResult{Revision: revision}
	it := t.Root().Iterator()
	it.SeekLowerBound([]byte(max(prefix, start)))
	for _, kv, ok := it.Next(); ok && strings.HasPrefix(kv.Key, prefix); _, kv, ok = it.Next() {
		res.Total++
		if limit <= 0 || len(res.KVs) < limit {
			res.KVs = append(res.KVs, kv)
		}
	}
	res.More = res.Total > int64(len(res.KVs))
	return res, nil
}

// Digest is a hash of the whole state at a revision (0: the newest) and that
// revision. Two peers with equal revisions must have equal digests. It reads
// every key. Errors are those of List.
func (s *state) Digest(at int64) (string, int64, error) {
	t, revision, err := s.treeAt("", at)
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	buf := binary.BigEndian.AppendUint64(nil, uint64(revision))
	t.Root().Walk(func(_ []byte, kv *KV) bool {
		buf = appendKV(buf, kv)
		h.Write(buf)
		buf = buf[:0]
		return false
	})
	h.Write(buf)
	return hex.EncodeToString(h.Sum(nil)), revision, nil
}

// treeAt returns the state at a revision, right only for the keys of prefix.
// An older state is the newest one with the events since undone: it costs
// nothing to keep and, with a bounded history, little to make.
func (s *state) treeAt(prefix string, at int64) (*tree, int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case at == 0 || at == s.revision:
		return s.tree, s.revision, nil
	case at > s.revision:
		return nil, 0, &FutureRevisionError{Asked: at, Current: s.revision}
	case at <= s.hist.compact:
		return nil, 0, ErrCompacted
	}
	var tx *iradix.Txn[*KV]
	for seq := s.hist.next - 1; seq >= s.hist.first; seq-- {
		e := s.hist.at(seq)
		if e.Revision <= at {
			break
		}
		if !strings.HasPrefix(e.Key, prefix) {
			continue
		}
		if tx == nil {
			tx = s.tree.Txn()
		}
		if e.Prev == nil {
			tx.Delete(bytesOf(e.Key))
		} else {
			tx.Insert(bytesOf(e.Key), e.Prev)
		}
	}
	if tx == nil {
		return s.tree, at, nil
	}
	return tx.CommitOnly(), at, nil
}
