package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	goruntime "runtime"
	"strings"

	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/rundigitalplatform/rookery/apiserver/authentication"
	"github.com/rundigitalplatform/rookery/apiserver/openapi"
)

// routes puts the API and what stands beside it under one mux.
func (s *Server) routes(api http.Handler, described ...openapi.Source) (http.Handler, error) {
	about, err := s.version()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	// What is asked under /apis is built in, or an extension server's, or a custom
	// resource, or not there, in this order.
	named := s.extensions.Handler(api)
	for path, h := range map[string]http.Handler{"/api": api, "/api/": api, "/apis": named, "/apis/": named} {
		mux.Handle(path, h)
	}
	docs := s.extensions.Documents(openapi.Handler(described...))
	mux.Handle("/openapi/", docs)
	s.installHealth(mux)
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(about)
	})
	mux.Handle("/metrics", legacyregistry.Handler())
	issuer, err := authentication.IssuerDocuments(s.cfg.TokenKey)
	if err != nil {
		return nil, err
	}
	for path, document := range issuer {
		mux.Handle(path, document)
	}
	return mux, nil
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
