package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/rundigitalplatform/rookery/raftstore"
)

func keys(res raftstore.ListResult) string {
	var names []string
	for _, kv := range res.KVs {
		names = append(names, kv.Key)
	}
	return strings.Join(names, " ")
}

func testList(t *testing.T, s raftstore.Store) {
	for _, key := range strings.Fields("b/2 a b/1 b/10 b c b/3 b0") {
		Put(t, s, key, key)
	}
	tests := []struct {
		prefix, start string
		limit         int
		want          string
		more          bool
		total         int64
	}{
		{"", "", 0, "a b b/1 b/10 b/2 b/3 b0 c", false, 8},
		{"b/", "", 0, "b/1 b/10 b/2 b/3", false, 4},
		{"b/", "", 2, "b/1 b/10", true, 4},
		{"b/", "b/10\x00", 2, "b/2 b/3", false, 2},
		{"b/", "b/2", 1, "b/2", true, 2},
		{"b/", "a", 0, "b/1 b/10 b/2 b/3", false, 4},
		{"b/", "b/9", 0, "", false, 0},
		{"b/", "c", 0, "", false, 0},
		{"b/", "", 4, "b/1 b/10 b/2 b/3", false, 4},
		{"z", "", 0, "", false, 0},
		{"b/10", "", 0, "b/10", false, 1},
	}
	for _, tt := range tests {
		res, err := s.List(tt.prefix, tt.start, 0, tt.limit)
		if err != nil || keys(res) != tt.want || res.More != tt.more || res.Total != tt.total || res.Revision != s.Revision() {
			t.Errorf("List(%q, %q, 0, %d) = %s more %v total %d revision %d, %v; want %s more %v total %d",
				tt.prefix, tt.start, tt.limit, keys(res), res.More, res.Total, res.Revision, err, tt.want, tt.more, tt.total)
		}
	}
}

func testListAt(t *testing.T, s raftstore.Store) {
	want := map[int64]string{1: ""}
	steps := []raftstore.Txn{
		{put("p/a", "1", 0)},
		{put("p/b", "1", 0), put("q", "1", 0)},
		{put("p/a", "2", raftstore.Any)},
		{del("p/b", raftstore.Any)},
		{put("p/b", "2", 0), del("p/a", raftstore.Any)},
	}
	for _, txn := range steps {
		rev := do(t, s, txn...).Revision
		want[rev] = contents(t, s, 0)
	}
	for rev, text := range want {
		if got := contents(t, s, rev); got != text {
			t.Errorf("at %d: %q, was %q then", rev, got, text)
		}
	}
	var future *raftstore.FutureRevisionError
	if _, err := s.List("", "", s.Revision()+1, 0); !errors.As(err, &future) || future.Asked != s.Revision()+1 {
		t.Errorf("list of the future: %v", err)
	}
	if _, err := s.Watch("", s.Revision()+1); !errors.As(err, &future) {
		t.Errorf("watch from the future: %v", err)
	}
	if _, err := s.Watch("", s.CompactRevision()); !errors.Is(err, raftstore.ErrCompacted) {
		t.Errorf("watch from the compacted past: %v", err)
	}
}

func contents(t testing.TB, s raftstore.Store, at int64) string {
	t.Helper()
	res, err := s.List("p/", "", at, 0)
	if err != nil {
		t.Fatalf("list at %d: %v", at, err)
	}
	var b strings.Builder
	for _, kv := range res.KVs {
		fmt.Fprintf(&b, "%s=%s@%d ", kv.Key, kv.Value, kv.ModRevision)
	}
	return b.String()
}

func next(t testing.TB, w *raftstore.Watcher) []raftstore.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	events, err := w.Next(ctx)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	return events
}

// text renders events as "+k=v" created, "k=old>new" changed, "-k=old" deleted.
func text(events []raftstore.Event) string {
	var out []string
	for _, e := range events {
		switch {
		case e.KV == nil:
			out = append(out, fmt.Sprintf("-%s=%s", e.Key, e.Prev.Value))
		case e.Prev == nil:
			out = append(out, fmt.Sprintf("+%s=%s", e.Key, e.KV.Value))
		default:
			out = append(out, fmt.Sprintf("%s=%s>%s", e.Key, e.Prev.Value, e.KV.Value))
		}
	}
	return strings.Join(out, " ")
}

func testWatch(t *testing.T, s raftstore.Store) {
	start := s.Revision()
	Put(t, s, "k", "1")
	do(t, s, put("k", "2", raftstore.Any), put("l", "1", raftstore.Any))
	middle := s.Revision()
	w, err := s.Watch("", start)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if got := text(next(t, w)); got != "+k=1 k=1>2 +l=1" {
		t.Errorf("from the start: %s", got)
	}
	later, err := s.Watch("", middle)
	if err != nil {
		t.Fatal(err)
	}
	do(t, s, del("k", raftstore.Any))
	do(t, s, del("k", raftstore.Any)) // absent: no event
	for _, w := range []*raftstore.Watcher{w, later} {
		if got := text(next(t, w)); got != "-k=2" {
			t.Errorf("then: %s", got)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if events, err := later.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing new: %v, %v", text(events), err)
	}
	ended := make(chan error)
	go func() {
		_, err := later.Next(context.Background())
		ended <- err
	}()
	later.Close()
	if err := <-ended; !errors.Is(err, raftstore.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	later.Close()
}

func testWatchPrefix(t *testing.T, s raftstore.Store) {
	watch := map[string]*raftstore.Watcher{}
	want := map[string]string{"": "+a=1 +a/b=1 +a/b/c=1 +b=1", "a": "+a=1 +a/b=1 +a/b/c=1", "a/b": "+a/b=1 +a/b/c=1", "b": "+b=1"}
	for prefix := range want {
		w, err := s.Watch(prefix, s.Revision())
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		watch[prefix] = w
	}
	for _, key := range []string{"a", "a/b", "a/b/c", "b"} {
		Put(t, s, key, "1")
	}
	for prefix, text1 := range want {
		var got []raftstore.Event
		for n := len(strings.Fields(text1)); len(got) < n; {
			got = append(got, next(t, watch[prefix])...)
		}
		if text(got) != text1 {
			t.Errorf("prefix %q: %s, want %s", prefix, text(got), text1)
		}
	}
}

func testProgress(t *testing.T, s raftstore.Store) {
	w, err := s.Watch("mine/", s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	other := Put(t, s, "other", "1")
	if got := w.Revision(); got != other {
		t.Errorf("progress %d after a change elsewhere, want %d", got, other)
	}
	mine := Put(t, s, "mine/a", "1")
	Put(t, s, "other", "2")
	if got := w.Revision(); got != mine-1 {
		t.Errorf("progress %d before delivery, want %d", got, mine-1)
	}
	next(t, w)
	if got := w.Revision(); got != s.Revision() {
		t.Errorf("progress %d after delivery, want %d", got, s.Revision())
	}
}

func testSlow(t *testing.T, s raftstore.Store) {
	quiet, err := s.Watch("quiet/", s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	slow, err := s.Watch("busy/", s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	const each, peers = 256, 8
	for round := 0; s.CompactRevision() <= 1; round++ {
		if round > 20 {
			t.Fatalf("compact revision is %d after %d events", s.CompactRevision(), round*each*peers)
		}
		concurrently(peers, func(i int) {
			var txn raftstore.Txn
			for j := range each {
				txn = append(txn, put(fmt.Sprintf("busy/%d/%d", i, j), "x", raftstore.Any))
			}
			do(t, s, txn...)
		})
	}
	if events, err := slow.Next(context.Background()); !errors.Is(err, raftstore.ErrCompacted) {
		t.Errorf("a watcher that fell behind: %d events, %v", len(events), err)
	}
	Put(t, s, "quiet/a", "1")
	if got := text(next(t, quiet)); got != "+quiet/a=1" {
		t.Errorf("a watcher with nothing to read was cut off: %s", got)
	}
	if _, err := s.List("", "", 1, 0); !errors.Is(err, raftstore.ErrCompacted) {
		t.Errorf("list at a compacted revision: %v", err)
	}
}

func testCounter(t *testing.T, s raftstore.Store) {
	const clients, increments = 4, 10
	Put(t, s, "counter", "0")
	concurrently(clients, func(int) {
		for range increments {
			for {
				kv, _ := s.Get("counter")
				var n int
				if _, err := fmt.Sscan(string(kv.Value), &n); err != nil {
					t.Error(err)
					return
				}
				if do(t, s, put("counter", fmt.Sprint(n+1), kv.ModRevision)).Applied {
					break
				}
			}
		}
	})
	if kv, _ := s.Get("counter"); string(kv.Value) != fmt.Sprint(clients*increments) {
		t.Errorf("counter is %s after %d increments", kv.Value, clients*increments)
	}
}

func concurrently(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
