package node

import (
	"testing"
	"time"
)

// While pods start their events wait, but not for long.
func TestEventsComeBehindStarts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.pull = slowPull(20 * time.Second)
		w.create(app("a", "IfNotPresent"))
		w.sleep(2 * time.Second)
		if have := w.events("a"); len(have) != 0 {
			t.Errorf("while the pod starts: %q", have)
		}
		w.sleep(2 * time.Second)
		w.wantEvents("a", `Normal Pulling Pulling image "reg.test/team/app:1"`)
		w.sleep(20 * time.Second)
		w.wantEvents("a", "Normal Started Container started")
	})
}
