package usage

import (
	"encoding/json"
	"log/slog"
	"net/http"

	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Handler serves /usage/node, a NodeMetrics, and /usage/pods, a PodMetricsList, both
// of metrics.k8s.io/v1beta1 and as JSON; and, as a kubelet does, /stats/summary and
// /metrics/resource. Files are measured for /stats/summary alone. name is that of the node.
func Handler(s *Sampler, name string, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	serve := func(path string, of func(window) any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			win, err := s.window(r.Context())
			if err != nil {
				if r.Context().Err() == nil {
					log.Warn("take usage", "error", err)
				}
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(of(win)); err != nil {
				log.Debug("send usage", "error", err) // who asked is gone
			}
		})
	}
	mux.HandleFunc("GET /stats/summary", func(w http.ResponseWriter, r *http.Request) {
		win, err := s.window(r.Context())
		var files *Files
		if err == nil {
			files, err = s.filesNow(r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		out := win.summary(name)
		if files != nil {
			files.add(&out)
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(out); err != nil {
			log.Debug("send usage", "error", err) // who asked is gone
		}
	})
	mux.HandleFunc("GET /metrics/resource", func(w http.ResponseWriter, r *http.Request) {
		sample, err := s.take(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := sample.expose(w); err != nil {
			log.Debug("send usage", "error", err) // who asked is gone
		}
	})
	serve("/usage/node", func(w window) any {
		node := w.node()
		node.Name = name
		return node
	})
	serve("/usage/pods", func(w window) any {
		return metrics.PodMetricsList{Items: w.pods()}
	})
	return mux
}
