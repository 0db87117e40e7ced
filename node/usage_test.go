package node

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// TestUsage asks the agent what its pods use; in the world each container named
// busy computes all the time, others a tenth of it.
func TestUsage(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a, labels: {app: a}}
spec:
  initContainers:
  - {name: proxy, image: "localhost/hello:1", restartPolicy: Always}
  containers:
  - {name: busy, image: "localhost/hello:1"}
`)
		w.create(strings.NewReplacer("name: a", "name: b", "hello:1", "missing:1").Replace(plainPod)) // does not run
		get := func(path string, into any) {
			t.Helper()
			answer := httptest.NewRecorder()
			w.agent.Handler().ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
			if err := json.Unmarshal(answer.Body.Bytes(), into); err != nil {
				t.Fatalf("%s: %d %s: %v", path, answer.Code, answer.Body, err)
			}
		}
		text := func() string {
			t.Helper()
			var pods metrics.PodMetricsList
			get("/usage/pods", &pods)
			var b strings.Builder
			for _, p := range pods.Items {
				fmt.Fprintf(&b, "%s/%s %v %s:", p.Namespace, p.Name, p.Labels, p.Window.Duration)
				for _, c := range p.Containers {
					fmt.Fprintf(&b, " %s %s %s", c.Name, c.Usage.Cpu(), c.Usage.Memory())
				}
			}
			return b.String()
		}
		const want = "default/a map[app:a] %s: proxy 100m 1Mi busy 1 8Mi"
		w.sleep(time.Second)
		if have := text(); have != fmt.Sprintf(want, "1s") {
			t.Errorf("at first: %s", have)
		}
		w.sleep(15 * time.Second)
		if have := text(); have != fmt.Sprintf(want, "15s") {
			t.Errorf("later: %s", have)
		}
		var node metrics.NodeMetrics
		get("/usage/node", &node)
		if node.Name != "p1" || node.Usage.Memory().IsZero() || node.Window.Duration != 15*time.Second {
			t.Errorf("node: %+v", node)
		}
		w.delete("a", 1)
		w.sleep(10 * time.Second)
		if have := text(); have != "" {
			t.Errorf("after its end: %s", have)
		}
	})
}
