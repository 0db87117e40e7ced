package node

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// A pod that was deleted by force ends while the next of its name runs already: that one is meant.
func TestStreamsOfTheNewPod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["web"] = func(ctx context.Context, _ memory.Process) int { <-ctx.Done(); return 137 }
		next := w.create(plainPod).DeepCopy()
		pods := w.client.CoreV1().Pods("default")
		if err := pods.Delete(context.Background(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if old := (streams{w.agent}).find("default", "a"); old == nil || old.uid != "uid-a" {
			t.Errorf("the old pod is %v", old)
		}
		next.UID, next.ResourceVersion = "uid-next", ""
		if _, err := pods.Create(context.Background(), next, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if n := len(w.agent.allWorkers()); n != 2 {
			t.Fatalf("%d pods, want the old one still", n)
		}
		for range 20 { // they are in no order
			if found := (streams{w.agent}).find("default", "a"); found == nil || found.uid != "uid-next" {
				t.Fatalf("found %v", found)
			}
		}
	})
}
