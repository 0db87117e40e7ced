package apiserver_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// observer watches one peer as an informer does: a list, a watch from there, when that
// ends another from the last thing seen, and a list again when the history is gone.
type observer struct {
	flock *flock
	peer  string
	runs  []*sight
}

// sight is what was seen without a gap.
type sight struct {
	from, last int64 // revisions: of the list, of the last event
	events     []seen
}

type seen struct {
	rv         int64
	kind       watch.EventType
	key, value string
}

func (o *observer) run(ctx context.Context) {
	var now *sight
	for ctx.Err() == nil {
		pause := time.Duration(rand.IntN(100)) * time.Millisecond
		if rand.IntN(10) == 0 {
			pause = 3 * time.Second // long enough for the history to be gone
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		api := o.flock.api(o.peer)
		if api == nil {
			continue
		}
		maps := api.CoreV1().ConfigMaps("default")
		if now == nil {
			list, err := maps.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
			if err != nil {
				continue
			}
			rv := revision(list.ResourceVersion)
			now = &sight{from: rv, last: rv}
			o.runs = append(o.runs, now)
		}
		if !now.watch(ctx, maps) {
			now = nil
		}
	}
}

// watch goes on from the last event for a while. false: the history is gone.
func (s *sight) watch(ctx context.Context, maps typedv1.ConfigMapInterface) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Millisecond)
	defer cancel()
	w, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: strconv.FormatInt(s.last, 10)})
	if err != nil {
		return !gone(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return !gone(apierrors.FromObject(e.Object))
		}
		obj := e.Object.(*corev1.ConfigMap)
		s.last = revision(obj.ResourceVersion)
		s.events = append(s.events, seen{s.last, e.Type, obj.Name, obj.Data["v"]})
	}
	return true
}

func gone(err error) bool { return apierrors.IsGone(err) || apierrors.IsResourceExpired(err) }

func revision(rv string) int64 {
	n, err := strconv.ParseInt(rv, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func checkObservers(t *testing.T, h *history, observers []*observer) {
	all := map[int64]seen{}
	relists, reported := 0, 0
	for _, o := range observers {
		relists += len(o.runs) - 1
		for _, s := range o.runs {
			for i, e := range s.events {
				if before := s.from; e.rv <= before || i > 0 && e.rv <= s.events[i-1].rv {
					t.Errorf("%s: event %+v is not after the one before it", o.peer, e)
				}
				if have, ok := all[e.rv]; ok && have != e {
					t.Errorf("%s saw %+v, another %+v", o.peer, e, have)
				}
				all[e.rv] = e
			}
		}
	}
	revisions := make([]int64, 0, len(all))
	for rv := range all {
		revisions = append(revisions, rv)
	}
	slices.Sort(revisions)
	for _, o := range observers {
		for _, s := range o.runs {
			from, _ := slices.BinarySearch(revisions, s.from+1)
			to, _ := slices.BinarySearch(revisions, s.last+1)
			if want := to - from; want != len(s.events) && reported < 10 {
				reported++
				t.Errorf("%s saw %d of %d events from %d to %d", o.peer, len(s.events), want, s.from, s.last)
			}
		}
	}
	checkAcknowledged(t, h.ops, all, revisions)
	t.Logf("%d events seen by %d watchers, %d lists again", len(all), len(observers), relists)
	if len(all) < 50 || relists == 0 {
		t.Error("hardly anything was seen, so that this proves nothing")
	}
}

// checkAcknowledged looks for each acknowledged write among the events.
func checkAcknowledged(t *testing.T, ops []porcupine.Operation, all map[int64]seen, revisions []int64) {
	for _, op := range ops {
		s, o := op.Input.(step), op.Output.(outcome)
		if o.result != "ok" || o.rv == 0 || s.verb == "get" || o.rv > revisions[len(revisions)-1] || o.rv < revisions[0] {
			continue
		}
		if e, ok := all[o.rv]; !ok || e.key != s.key || e.value != s.to {
			t.Errorf("%+v was acknowledged at %d; what was seen there is %+v", s, o.rv, e)
		}
	}
}
