package node

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime/memory"
)

func TestLogs(t *testing.T) {
	inWorld(t, func(w *world) {
		n := 0
		w.script["web"] = func(ctx context.Context, p memory.Process) int {
			n++
			fmt.Fprintf(p.Stdout, "run %d\nsecond\nthird\n", n)
			if n == 1 {
				return 1
			}
			return untilStopped(ctx, p)
		}
		w.create(plainPod)
		w.create(strings.NewReplacer("name: a", "name: b", "hello:1", "missing:1").Replace(plainPod))
		w.sleep(3 * time.Second)
		for _, tt := range []struct {
			path   string
			status int
			want   string
		}{
			{"a/web", 200, "run 2\nsecond\nthird\n"},
			{"a/web?previous=true", 200, "run 1\nsecond\nthird\n"},
			{"a/web?tailLines=1", 200, "third\n"},
			{"a/web?limitBytes=4", 200, "run "},
			{"a/web?tailLines=x", 400, "tailLines: \"x\" is not a number of at least 0\n"},
			{"a/nope", 404, "container \"nope\" not found in pod \"a\"\n"},
			{"c/web", 404, "pod \"c\" is not on this peer\n"},
			{"b/web", 400, "container \"web\" in pod \"b\" is waiting to start: ImagePullBackOff"},
		} {
			answer := httptest.NewRecorder()
			w.agent.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/containerLogs/default/"+tt.path, nil))
			if body := answer.Body.String(); answer.Code != tt.status || !strings.HasPrefix(body, tt.want) {
				t.Errorf("%s: %d %q, want %d %q", tt.path, answer.Code, body, tt.status, tt.want)
			}
		}
	})
}
