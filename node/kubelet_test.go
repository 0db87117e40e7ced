package node

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// What the node proxy leads to beside streams.
func TestKubeletPaths(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		get := func(path string) (int, string) {
			answer := httptest.NewRecorder()
			w.agent.Handler().ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
			return answer.Code, answer.Body.String()
		}
		for path, want := range map[string]string{
			"/healthz":          "200 ok",
			"/metrics/resource": `200 # HELP container_cpu_usage_seconds_total`,
			"/stats/summary":    `200 {"node":{"nodeName":"p1"`,
			"/configz":          "404 the agent of node p1 has no /configz; it has /healthz",
			"/run/default/a":    "404 the agent of node p1 has no /run/default/a",
		} {
			if code, body := get(path); !strings.HasPrefix(fmt.Sprintf("%d %s", code, body), want) {
				t.Errorf("%s: %d %s, want %s", path, code, body, want)
			}
		}
		_, body := get("/metrics/resource")
		if !strings.Contains(body, `container_memory_working_set_bytes{container="web",namespace="default",pod="a"} 1.048576e+06`) {
			t.Errorf("/metrics/resource: %s", body)
		}
		_, body = get("/stats/summary")
		if !strings.Contains(body, `"podRef":{"name":"a","namespace":"default","uid":"uid-a"}`) || !strings.Contains(body, `"workingSetBytes":1048576`) {
			t.Errorf("/stats/summary: %s", body)
		}
		var pods v1.PodList
		if _, body := get("/pods"); json.Unmarshal([]byte(body), &pods) != nil || len(pods.Items) != 1 || pods.Items[0].Status.PodIP != "10.42.0.1" {
			t.Errorf("/pods: %s", body)
		}
	})
}
