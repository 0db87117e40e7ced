package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	goruntime "runtime"
	"strings"

	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/rundigitalplatform/rookery/apiserver/openapi"
)

// routes puts the API and what stands beside it under one mux.
func (s *Server) routes(api http.Handler) (http.Handler, error) {
	about, err := s.version()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for _, p := range []string{"/api", "/api/", "/apis", "/apis/"} {
		mux.Handle(p, api)
	}
	docs := openapi.Handler()
	mux.Handle("/openapi/", docs)
	mux.HandleFunc("/livez", health(func() error { return nil }))
	mux.HandleFunc("/readyz", health(s.Ready))
	mux.HandleFunc("/healthz", health(s.Ready))
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(about)
	})
	mux.Handle("/metrics", legacyregistry.Handler())
	return mux, nil
}

func health(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprint(w, "ok")
	}
}

func (s *Server) version() ([]byte, error) {
	major, rest, ok := strings.Cut(strings.TrimPrefix(s.cfg.KubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	if !ok || major == "" || minor == "" {
		return nil, fmt.Errorf("kubernetes version %q is not like v1.37.2", s.cfg.KubernetesVersion)
	}
	return json.MarshalIndent(apiversion.Info{
		Major: major, Minor: minor, GitVersion: s.cfg.KubernetesVersion, GitCommit: s.cfg.GitCommit, GitTreeState: "clean", BuildDate: s.cfg.BuildDate,
		GoVersion: goruntime.Version(), Compiler: goruntime.Compiler, Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}, "", "  ")
}
