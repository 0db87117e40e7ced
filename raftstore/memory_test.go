package raftstore_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) raftstore.Store {
		m := raftstore.NewMemory()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return m
	})
}

func BenchmarkMemoryTxn(b *testing.B) {
	benchmarkTxn(b, raftstore.NewMemory())
}

// benchmarkTxn writes 512-byte values to 10,000 keys.
func benchmarkTxn(b *testing.B, s raftstore.Store) {
	value := make([]byte, 512)
	var n atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := fmt.Sprintf("/registry/configmaps/default/cm-%d", n.Add(1)%10_000)
			_, err := s.Txn(context.Background(), raftstore.Txn{{Key: key, If: raftstore.Any, Kind: raftstore.Put, Value: value}})
			if err != nil {
				b.Error(err)
			}
		}
	})
}
