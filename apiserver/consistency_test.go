package apiserver_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// faultTime is how long the consistency tests let things go wrong.
var faultTime = flag.Duration("faults", 15*time.Second, "how long TestConsistency kills and cuts off peers")

// TestConsistency asks three peers at random while leaders are killed and peers are
// cut off. Every answer must fit one order of all operations (Herlihy and Wing's
// linearizability, checked by porcupine), and every watcher must see each change
// once, in order, none missing, over reconnects and compactions.
func TestConsistency(t *testing.T) {
	f := newFlock(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	history := &history{}
	for i := range 6 {
		running.Go(func() { f.work(ctx, i, history) })
	}
	var watchers []*observer
	for _, name := range f.names {
		for range 2 {
			w := &observer{flock: f, peer: name}
			watchers = append(watchers, w)
			running.Go(func() { w.run(ctx) })
		}
	}
	f.faults(*faultTime)
	stop()
	running.Wait()
	f.check(t, history)
	checkObservers(t, history, watchers)
}

// flock is three peers with an API each.
type flock struct {
	t     *testing.T
	names []string
	raft  *rafttest.Cluster

	mu   sync.Mutex
	apis map[string]*member
}

// member is one life of a peer's API.
type member struct {
	client kubernetes.Interface
	stop   func()
}

func newFlock(t *testing.T) *flock {
	f := &flock{t: t, names: []string{"a", "b", "c"}, apis: map[string]*member{}}
	f.raft = rafttest.NewCluster(t, func(c *raftstore.Config) { c.HistoryEvents = 10 }, f.names...)
	for name, p := range f.raft.Peers() {
		f.serve(name, p)
	}
	t.Cleanup(func() {
		for _, name := range f.names {
			f.silence(name)
		}
	})
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := f.api("a").CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *flock) serve(name string, store raftstore.Store) {
	server, err := apiserver.New(apiserver.Config{Store: store, Logger: slog.New(slog.DiscardHandler), TokenKey: newKey(f.t)})
	if err != nil {
		f.t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Run(ctx); err != nil {
			f.t.Errorf("run api of %s: %v", name, err)
		}
	}()
	cfg := server.ClientConfig("admin", "system:masters")
	cfg.WarningHandler, cfg.WarningHandlerWithContext = nil, hearWarnings{}
	m := &member{client: client(f.t, cfg), stop: func() { cancel(); <-done }}
	for end := time.Now().Add(20 * time.Second); server.Ready() != nil && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	f.mu.Lock()
	f.apis[name] = m
	f.mu.Unlock()
}

func (f *flock) silence(name string) {
	f.mu.Lock()
	m := f.apis[name]
	delete(f.apis, name)
	f.mu.Unlock()
	if m != nil {
		m.stop()
	}
}

// api is the client of a peer, nil while it is down.
func (f *flock) api(name string) kubernetes.Interface {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.apis[name]; m != nil {
		return m.client
	}
	return nil
}

// faults breaks things one after the other, and mends them.
func (f *flock) faults(long time.Duration) {
	for end := time.Now().Add(long); time.Now().Before(end); {
		time.Sleep(time.Duration(500+rand.IntN(1000)) * time.Millisecond)
		victim := f.names[rand.IntN(3)]
		if rand.IntN(2) == 0 {
			victim = f.raft.Leader().Name
		}
		p := f.raft.Peers()[victim]
		pause := time.Duration(200+rand.IntN(2500)) * time.Millisecond
		if rand.IntN(2) == 0 {
			f.raft.Net.SetCut(victim, true)
			time.Sleep(pause)
			f.raft.Net.SetCut(victim, false)
			continue
		}
		f.raft.Kill(p)
		f.silence(victim)
		time.Sleep(pause)
		f.serve(victim, f.raft.Revive(victim))
	}
	f.raft.Agree()
}

// staleKey is where hearWarnings notes that an answer was marked stale.
type staleKey struct{}

type hearWarnings struct{}

func (hearWarnings) HandleWarningHeaderWithContext(ctx context.Context, _ int, _, _ string) {
	if stale, ok := ctx.Value(staleKey{}).(*atomic.Bool); ok {
		stale.Store(true)
	}
}

// step is one operation on one object.
type step struct {
	verb     string // get, create, update (if its value is still from), patch, delete
	key      string
	from, to string
}

// outcome is what came of it.
type outcome struct {
	result string // ok, conflict (also: exists already), absent, unknown
	value  string // of get
	rv     int64  // of a write that was acknowledged
}

// history is what was asked and answered, in the form porcupine takes.
type history struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (h *history) add(client int, s step, o outcome, call, back time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.began.IsZero() {
		h.began = call.Add(-time.Hour)
	}
	end := back.Sub(h.began).Nanoseconds()
	if o.result == "unknown" {
		end = math.MaxInt64 // it may still happen, at any time
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: s, Output: o, Call: call.Sub(h.began).Nanoseconds(), Return: end})
}

// work asks random peers for random things.
func (f *flock) work(ctx context.Context, id int, h *history) {
	type copy struct{ value, rv string }
	known := map[string]copy{}
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
		api := f.api(f.names[rand.IntN(3)])
		if api == nil {
			continue
		}
		s := step{key: "k" + strconv.Itoa(rand.IntN(4)), to: fmt.Sprintf("%d.%d", id, n)}
		s.verb = []string{"get", "get", "get", "create", "create", "update", "update", "update", "patch", "delete"}[rand.IntN(10)]
		have := known[s.key]
		if s.from = have.value; s.verb == "update" && have.rv == "" {
			s.verb = "get"
		}
		var stale atomic.Bool
		call, cancel := context.WithTimeout(context.WithValue(ctx, staleKey{}, &stale), 6*time.Second)
		begin := time.Now()
		obj, err := do(call, api.CoreV1().ConfigMaps("default"), s, have.rv)
		cancel()
		o := classify(obj, err)
		if stale.Load() && (s.verb == "get" || o.result != "ok") {
			continue // it was told to be old, and nothing was done
		}
		if s.verb == "get" && o.result == "unknown" {
			continue
		}
		h.add(id, s, o, begin, time.Now())
		switch {
		case o.result == "ok" && obj != nil && s.verb != "delete":
			known[s.key] = copy{obj.Data["v"], obj.ResourceVersion}
		case o.result != "ok":
			delete(known, s.key)
		}
	}
}

func do(ctx context.Context, c typedv1.ConfigMapInterface, s step, rv string) (*corev1.ConfigMap, error) {
	obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: s.key}, Data: map[string]string{"v": s.to}}
	switch s.verb {
	case "create":
		return c.Create(ctx, obj, metav1.CreateOptions{})
	case "update":
		obj.ResourceVersion = rv
		return c.Update(ctx, obj, metav1.UpdateOptions{})
	case "patch":
		return c.Patch(ctx, s.key, types.MergePatchType, fmt.Appendf(nil, `{"data":{"v":%q}}`, s.to), metav1.PatchOptions{})
	case "delete":
		return nil, c.Delete(ctx, s.key, metav1.DeleteOptions{})
	}
	return c.Get(ctx, s.key, metav1.GetOptions{})
}

func classify(obj *corev1.ConfigMap, err error) outcome {
	switch {
	case err == nil && obj == nil:
		return outcome{result: "ok"}
	case err == nil:
		rv, err := strconv.ParseInt(obj.ResourceVersion, 10, 64)
		if err != nil {
			panic(err)
		}
		return outcome{result: "ok", value: obj.Data["v"], rv: rv}
	case apierrors.IsNotFound(err):
		return outcome{result: "absent"}
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return outcome{result: "conflict"}
	}
	return outcome{result: "unknown"}
}

// model is one object: its value, "" while it is absent. Each write has a value of its
// own, so that "update what I read" is a comparison of values.
func model() porcupine.Model {
	return porcupine.Model{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range ops {
				key := op.Input.(step).key
				byKey[key] = append(byKey[key], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range byKey {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			return apply(state.(string), input.(step), output.(outcome))
		},
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%+v -> %+v", input, output)
		},
	}
}

func apply(now string, s step, o outcome) (bool, any) {
	next, result := now, "ok"
	switch s.verb {
	case "get":
		if now == "" {
			return o.result == "absent", now
		}
		return o.result == "ok" && o.value == now, now
	case "create":
		if next = s.to; now != "" {
			next, result = now, "conflict"
		}
	case "update":
		switch next = s.to; now {
		case "":
			next, result = now, "absent"
		case s.from:
		default:
			next, result = now, "conflict"
		}
	case "patch":
		if next = s.to; now == "" {
			next, result = now, "absent"
		}
	case "delete":
		if next = ""; now == "" {
			next, result = now, "absent"
		}
	}
	if o.result == "unknown" {
		return true, next
	}
	// An update of what was deleted and made anew is a conflict, too: the rv is another's.
	return o.result == result || s.verb == "update" && result == "absent" && o.result == "conflict", next
}

func (f *flock) check(t *testing.T, h *history) {
	counts := map[string]int{}
	for _, op := range h.ops {
		counts[op.Input.(step).verb+" "+op.Output.(outcome).result]++
	}
	t.Logf("%d operations: %v", len(h.ops), counts)
	if counts["get ok"] < 50 || counts["update ok"] < 10 || counts["create ok"] < 10 {
		t.Error("hardly anything was done, so that this proves nothing")
	}
	result, info := porcupine.CheckOperationsVerbose(model(), h.ops, time.Minute)
	if result == porcupine.Ok {
		return
	}
	path := t.ArtifactDir() + "/history.html"
	t.Errorf("operations are %s linearizable; see %s: %v", map[porcupine.CheckResult]string{porcupine.Illegal: "not", porcupine.Unknown: "perhaps not"}[result],
		path, porcupine.VisualizePath(model(), info, path))
}
