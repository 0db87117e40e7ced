package node

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// brokenStorage is not there at first, and then has found something broken.
type brokenStorage struct {
	w       *world
	tries   int
	damages []runtime.Damage
}

func (s *brokenStorage) Mend(context.Context) ([]runtime.Damage, error) {
	if s.tries++; s.tries == 1 {
		return nil, runtime.ErrUnavailable
	}
	time.Sleep(10 * time.Second) // pods wait
	s.w.note("mended")
	return s.damages, nil
}

func (s *brokenStorage) Verify(context.Context) ([]runtime.Damage, error) { return nil, nil }

// What a power loss broke is mended once, before the first pod starts, and told.
func TestBrokenStorage(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		s := &brokenStorage{w: w, damages: []runtime.Damage{
			{What: "image localhost/lost:1: its manifest is missing", Done: "it was removed", Image: "sha256:9", Names: []string{"localhost/lost:1"}},
			{What: "image localhost/hello:1: its manifest is missing", Done: "it was removed", Image: "sha256:1", Names: []string{"localhost/hello:1"}},
			{What: "a list: it is torn", Done: "it was set aside", Cure: "nothing is to be done"},
		}}
		w.storage = s
		w.start()
		w.create("metadata: {name: web}\nspec:\n  containers:\n  - {name: web, image: \"localhost/hello:1\"}\n  - {name: lost, image: \"localhost/lost:1\"}\n")
		w.sleep(3 * time.Minute)
		if notes := w.notes(); !strings.HasPrefix(notes, "mended") || strings.Count(notes, "mended") != 1 || !strings.Contains(notes, "start web") {
			t.Errorf("in order: %s", notes)
		}
		w.wantEvents("p1",
			"Warning StorageDamaged image localhost/lost:1: its manifest is missing; it was removed; it was loaded by hand: load it again with `rookery image load FILE`",
			"Warning StorageDamaged a list: it is torn; it was set aside; nothing is to be done")
		for _, c := range w.pod("web").Status.ContainerStatuses {
			if c.Name == "lost" && (c.State.Waiting == nil || !strings.Contains(c.State.Waiting.Message, "its manifest is missing, and it was removed")) {
				t.Errorf("the pod's status does not say what became of its image: %+v", c.State)
			}
		}
		if all := w.agent.Damage(); len(all) != 2 || all[0].Names[0] != "localhost/lost:1" || !strings.Contains(all[0].Cure, "image load") {
			t.Errorf("what is still to be told, of which hello:1 is back: %+v", all)
		}
		w.agent.mu.Lock()
		for i := range w.agent.damages {
			w.agent.damages[i].at = time.Now().Add(-25 * time.Hour)
		}
		w.agent.mu.Unlock()
		if all := w.agent.Damage(); len(all) != 1 {
			t.Errorf("a day later: %+v", all)
		}
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node: %+v", c)
		}
	})
}
