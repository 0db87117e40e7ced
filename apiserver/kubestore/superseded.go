package kubestore

import (
	"sync"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// keepSuperseded is how many replaced objects of a resource stay decoded: enough
// for the other watchers of the same change to find them, little enough not to matter.
const keepSuperseded = 32

// supersededObjects makes replaced values forget their objects, the oldest first.
// The history keeps thousands of replaced values, and an object is several times
// as big as its bytes.
type supersededObjects struct {
	mu   sync.Mutex
	ring [keepSuperseded]*decoded
	next int
}

// retire notes that kv has been replaced. kv may be nil; telling it twice does nothing.
func (s *Storage) retire(kv *raftstore.KV) {
	if kv == nil {
		return
	}
	d := s.memo(kv, noMemo)
	if d == nil || d.retired.Swap(true) {
		return
	}
	s.superseded.push(d)
}

func (q *supersededObjects) push(d *decoded) {
	q.mu.Lock()
	oldest := q.ring[q.next]
	q.ring[q.next] = d
	q.next = (q.next + 1) % keepSuperseded
	q.mu.Unlock()
	if oldest != nil {
		oldest.mu.Lock()
		oldest.gone = true
		oldest.obj.Store(nil)
		oldest.mu.Unlock()
	}
}
