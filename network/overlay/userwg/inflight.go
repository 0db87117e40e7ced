package userwg

import (
	"sync"
	"time"
)

// inFlight bounds how many packets are inside the WireGuard device. The device
// keeps each in a buffer of 64 kB, has room for some hundred thousand in its
// queues and no limit of its own; a TCP window that waits for encryption would
// cost a small machine more memory than all the rest of the daemon.
//
// Packets go in by one end and usually come out by the other. Those that do not
// (a peer without a key, a forgery, a keepalive) must not block for ever, so a wait
// that nothing ends is over after stall, and the count begins anew.
type inFlight struct {
	limit int

	mu    sync.Mutex
	count int
	less  chan struct{} // closed and replaced when count sinks
}

// stall is longer than the device takes for a full count of packets, and short
// enough that somebody who sends only garbage slows the others by little.
const stall = 5 * time.Millisecond

// maxInFlight is two batches: one that is being filled while the other is worked on.
const maxInFlight = 2 * smallBatch

func newInFlight() *inFlight { return &inFlight{limit: maxInFlight, less: make(chan struct{})} }

// enter counts n packets in after they have been read, and waits while there are too many.
func (f *inFlight) enter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count += n
	for f.count > f.limit {
		less := f.less
		f.mu.Unlock()
		timer := time.NewTimer(stall)
		stalled := false
		select {
		case <-less:
		case <-timer.C:
			stalled = true
		}
		timer.Stop()
		f.mu.Lock()
		if stalled && f.less == less {
			f.count = 0
		}
	}
}

func (f *inFlight) leave(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count = max(0, f.count-n)
	close(f.less)
	f.less = make(chan struct{})
}
