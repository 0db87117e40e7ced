package kubestore

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// alone is the transport of a peer that has no others.
type alone struct{ listener net.Listener }

func (alone) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("there is no other peer")
}

func (a alone) Listener(string) net.Listener { return a.listener }

// openReplicated returns a cluster of one peer, on disk, that runs until the test ends.
func openReplicated(t testing.TB) raftstore.Store {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := raftstore.New(raftstore.Config{Name: "p1", Dir: t.TempDir(), Transport: alone{listener}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run store: %v", err)
		}
		listener.Close()
	})
	select {
	case <-r.Started():
	case <-time.After(10 * time.Second):
		t.Fatal("the store does not start")
	}
	for end := time.Now().Add(10 * time.Second); !r.IsLeader(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the only peer does not become leader")
		}
	}
	return r
}

// TestConformanceReplicated runs on Raft, on disk, a selection of the suite in which every
// method is called: each store costs an election.
func TestConformanceReplicated(t *testing.T) {
	for _, name := range []string{
		"CreateWithTTL", "Get", "ConditionalDelete", "DeleteWithConflict", "GuaranteedUpdateWithConflict",
		"GuaranteedUpdateWithTTL", "ListPaging", "NamespaceScopedList", "Watch", "WatchDeleteEventObjectHasLatestRV",
		"WatchListMatchSingle", "WatchSemanticInitialEvents",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, openReplicated, false)
			plainTests()[name](h.ctx, t, h)
		})
	}
}
