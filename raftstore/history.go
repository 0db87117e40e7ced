package raftstore

// history is the newest events in a ring, whole revisions at a time. An event
// is found by its sequence number, which grows by one with each event and never
// repeats. It holds pointers to KVs, most of which the state holds as well.
type history struct {
	ring        []Event
	first, next int64 // sequence numbers: first kept, next to be given
	compact     int64 // newest revision that cannot be watched from
	bytes       int   // of the values that events are about
	maxEvents   int
	maxBytes    int
}

func (h *history) at(seq int64) *Event { return &h.ring[seq%int64(len(h.ring))] }

func (h *history) append(e Event) int64 {
	if n := h.next - h.first; n == int64(len(h.ring)) {
		h.grow()
	}
	seq := h.next
	h.next++
	*h.at(seq) = e
	h.bytes += eventBytes(&e)
	return seq
}

// grow doubles the ring, so that a quiet peer does not pay for a busy one's history.
func (h *history) grow() {
	bigger := make([]Event, max(64, 2*len(h.ring)))
	for seq := h.first; seq < h.next; seq++ {
		bigger[seq%int64(len(bigger))] = *h.at(seq)
	}
	h.ring = bigger
}

// trim drops the oldest revisions until the history is within its bounds.
func (h *history) trim() {
	for h.first < h.next && (h.next-h.first > int64(h.maxEvents) || h.bytes > h.maxBytes) {
		rev := h.at(h.first).Revision
		for h.first < h.next && h.at(h.first).Revision == rev {
			h.bytes -= eventBytes(h.at(h.first))
			*h.at(h.first) = Event{}
			h.first++
		}
		h.compact = rev - 1
	}
}

// reset forgets everything; revision is the state's from now on.
func (h *history) reset(revision int64) {
	h.ring, h.first, h.bytes, h.compact = nil, h.next, 0, revision-1
}

// after is the sequence number of the first event that came after revision.
func (h *history) after(revision int64) int64 {
	lo, hi := h.first, h.next
	for lo < hi {
		if mid := (lo + hi) / 2; h.at(mid).Revision <= revision {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

func eventBytes(e *Event) int {
	if e.Prev != nil {
		return len(e.Prev.Value) // what only the history keeps alive
	}
	return len(e.Key)
}
