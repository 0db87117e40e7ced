package aggregation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

const documents = "/openapi/v3"

// Documents adds the OpenAPI v3 documents of extension servers to those of next. The
// one document of version 2 stays as it is: to merge them would mean to parse them all.
func (a *Aggregator) Documents(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := a.table.Load()
		switch {
		case len(t.routes) == 0 || r.Method != http.MethodGet:
		case r.URL.Path == documents:
			a.serveIndex(w, r, t, next)
			return
		default:
			if to := t.described(r.URL.Path); to != nil {
				a.forward(w, r, to)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// described is the route that a document's path is of.
func (t *table) described(path string) *route {
	name, ok := strings.CutPrefix(path, documents+"/apis/")
	if !ok {
		return nil
	}
	group, version, ok := strings.Cut(name, "/")
	to := t.routes[schema.GroupVersion{Group: group, Version: version}]
	if !ok || to == nil || to.builtin && !to.available() {
		return nil
	}
	return to
}

// serveIndex adds to the index of next. What an extension server does not say is left out.
func (a *Aggregator) serveIndex(w http.ResponseWriter, r *http.Request, t *table, next http.Handler) {
	own := &kept{header: http.Header{}, code: http.StatusOK}
	next.ServeHTTP(own, r)
	var index struct {
		Paths map[string]any `json:"paths"`
	}
	if own.code != http.StatusOK || json.Unmarshal(own.body.Bytes(), &index) != nil {
		own.copyTo(w)
		return
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, to := range t.routes {
		if !to.available() {
			continue
		}
		all.Go(func() {
			paths := a.paths(r.Context(), to)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(index.Paths, paths)
		})
	}
	all.Wait()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(index); err != nil {
		a.cfg.Logger.Debug("send index of documents", "err", err)
	}
}

// paths is the part of an extension server's index that is about the group version.
func (a *Aggregator) paths(ctx context.Context, to *route) map[string]any {
	known := func() (map[string]any, bool) {
		to.notebook.mu.Lock()
		defer to.notebook.mu.Unlock()
		return to.notebook.paths, !to.notebook.documents.due()
	}
	if paths, fresh := known(); fresh {
		return paths
	}
	_, err, _ := a.asking.Do("documents "+to.name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		_, body, err := a.ask(ctx, to, documents, "application/json")
		var index struct {
			Paths map[string]any `json:"paths"`
		}
		if err == nil {
			err = json.Unmarshal(body, &index)
		}
		if errors.Is(err, errNotServed) {
			err = nil
		}
		found := map[string]any{}
		if entry, ok := index.Paths["apis/"+to.gv.String()]; ok {
			found["apis/"+to.gv.String()] = entry
		}
		to.notebook.mu.Lock()
		defer to.notebook.mu.Unlock()
		to.notebook.documents = asked{time.Now(), err == nil}
		if err != nil { // then what it said before stays
			return nil, fmt.Errorf("read index of documents: %w", err)
		}
		to.notebook.paths = found
		return nil, nil
	})
	if err != nil {
		a.cfg.Logger.Warn("an extension server's documents are left out", "apiservice", to.name, "err", err)
	}
	paths, _ := known()
	return paths
}

// kept is an answer that is looked at before it is sent.
type kept struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) WriteHeader(code int)        { k.code = code }
func (k *kept) Write(p []byte) (int, error) { return k.body.Write(p) }

func (k *kept) copyTo(w http.ResponseWriter) {
	maps.Copy(w.Header(), k.header)
	w.WriteHeader(k.code)
	w.Write(k.body.Bytes())
}
