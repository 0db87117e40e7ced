package raftstore_test

import (
	"testing"

	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// A leader that stops while it is written to does stop, also when Raft had committed entries
// that it did not get to apply, and who waits for them is answered.
func TestLeaderStopsUnderLoad(t *testing.T) {
	for range 10 {
		c := rafttest.NewCluster(t, nil, "a")
		l := &load{t: t, acked: map[string]int64{}, stop: make(chan struct{})}
		p := c.Leader()
		for range 8 {
			l.run(p)
		}
		rafttest.Eventually(t, "writes are acknowledged", func() bool { return l.count() > 20 })
		c.Halt(p)
		l.wg.Wait()
	}
}
