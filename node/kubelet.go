package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"
)

// kubelet adds what else a kubelet answers and people ask for, by
// /api/v1/nodes/NAME/proxy/PATH: /healthz, /pods and /metrics, the latter of the whole
// daemon. What is not here is a 404 that says what is.
func (a *Agent) kubelet(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.Engine(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, "ok")
	})
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
		list := v1.PodList{Items: []v1.Pod{}}
		list.APIVersion, list.Kind = "v1", "PodList"
		for _, worker := range a.allWorkers() {
			worker.mu.Lock()
			pod := *worker.pod
			if worker.reported != nil { // newer than what the API has taken in
				pod.Status = *worker.reported
			}
			worker.mu.Unlock()
			list.Items = append(list.Items, pod)
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(list); err != nil {
			a.log.Debug("send pods", "error", err) // who asked is gone
		}
	})
	mux.Handle("GET /metrics", legacyregistry.Handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("the agent of node %s has no %s; it has /healthz, /pods, /metrics, /metrics/resource, /stats/summary, "+
			"/containerLogs/NAMESPACE/POD/CONTAINER, /exec/…, /attach/… and /portForward/NAMESPACE/POD", a.cfg.Name, r.URL.Path), http.StatusNotFound)
	})
}
