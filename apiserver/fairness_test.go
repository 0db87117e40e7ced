package apiserver

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slots := newTurns(4)
		ctx := t.Context()
		// One user takes its half and no more, although there are free slots.
		for range 2 {
			if !slots.take(ctx, "flood") {
				t.Fatal("no slot")
			}
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		var order []string
		wait := func(user string) {
			wg.Go(func() {
				if slots.take(ctx, user) {
					mu.Lock()
					order = append(order, user)
					mu.Unlock()
				}
			})
			synctest.Wait()
		}
		wait("flood")
		wait("flood")
		begin := time.Now()
		for range 2 {
			if !slots.take(ctx, "bob") || time.Since(begin) > 0 {
				t.Fatal("bob has to wait for somebody else's flood")
			}
		}
		// All are taken: carol waits behind the flood and comes first, since the flood has its share.
		wait("carol")
		slots.give("bob")
		synctest.Wait()
		slots.give("flood")
		synctest.Wait()
		mu.Lock()
		if len(order) != 2 || order[0] != "carol" || order[1] != "flood" {
			t.Errorf("order %v", order)
		}
		mu.Unlock()
		wg.Wait() // the last one of the flood gives up
		if d := time.Since(begin); d != queueTime {
			t.Errorf("gave up after %v", d)
		}
		for _, user := range []string{"bob", "carol", "flood", "flood"} {
			slots.give(user)
		}
		if slots.free != 4 || len(slots.running)+len(slots.waiting)+len(slots.next) != 0 {
			t.Errorf("left over: %+v", slots)
		}
	})
}

func TestTurnsGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slots := newTurns(1)
		if !slots.take(t.Context(), "a") {
			t.Fatal("no slot")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if slots.take(ctx, "b") {
			t.Error("a request that has ended got a slot")
		}
		var wg sync.WaitGroup
		for range queueLength {
			wg.Go(func() { slots.take(t.Context(), "b") })
		}
		synctest.Wait()
		begin := time.Now()
		if slots.take(t.Context(), "b") || time.Since(begin) > 0 {
			t.Error("a full queue takes one more")
		}
		wg.Wait()
		slots.give("a")
		if slots.free != 1 || len(slots.waiting)+len(slots.next) != 0 {
			t.Errorf("left over: %+v", slots)
		}
	})
}
