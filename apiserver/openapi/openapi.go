// Package openapi serves the OpenAPI v3 documents of the groups that the
// apiserver serves, which kubectl asks for to validate, explain and diff.
//
// The documents are made at build time, by the generator in gen from those that
// the k8s.io/kubernetes module publishes, cut down to what is served, and are
// embedded compressed: nothing is parsed or kept on the heap. It is called by
// apiserver, whose test compares the documents with what is really served.
package openapi

import (
	"compress/gzip"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

//go:generate go run ./gen

//go:embed docs
var docs embed.FS // read-only by construction

const (
	jsonSuffix  = ".json.gz"
	protoSuffix = ".pb.gz"
	protoType   = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// Groups are the group versions that are described, "api/v1", "apis/apps/v1", …,
// each with the hash of its document.
func Groups() (map[string]string, error) {
	files, err := docs.ReadDir("docs")
	if err != nil {
		return nil, fmt.Errorf("list embedded documents: %w", err)
	}
	out := map[string]string{}
	for _, f := range files {
		base, ok := strings.CutSuffix(f.Name(), jsonSuffix)
		if !ok {
			continue
		}
		// <group version>@<hash>, with __ for each slash
		name, hash, ok := strings.Cut(base, "@")
		if !ok {
			return nil, fmt.Errorf("embedded document %q has no hash in its name", f.Name())
		}
		out[strings.ReplaceAll(name, "__", "/")] = hash
	}
	return out, nil
}

// Document opens a group version's document as JSON.
func Document(groupVersion string) (io.ReadCloser, error) {
	f, err := open(groupVersion, jsonSuffix)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read document of %s: %w", groupVersion, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}

func open(groupVersion, suffix string) (fs.File, error) {
	groups, err := Groups()
	if err != nil {
		return nil, err
	}
	hash, ok := groups[groupVersion]
	if !ok {
		return nil, fmt.Errorf("document of %s: %w", groupVersion, fs.ErrNotExist)
	}
	return docs.Open("docs/" + strings.ReplaceAll(groupVersion, "/", "__") + "@" + hash + suffix)
}

// Handler serves /openapi/v3, the index, and /openapi/v3/<group version>; and
// /openapi/v2, which describes nothing: kubectl asks for it when it meets a kind
// that v3 does not describe, and only a document without that kind lets it go on
// to say that there is no such kind.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/openapi/v3", index)
	mux.HandleFunc("/openapi/v3/", document)
	mux.HandleFunc("/openapi/v2", empty)
	return mux
}

func empty(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.Header.Get("Accept"), "proto-openapi") {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"swagger":"2.0","info":{"title":"Rookery","version":"see /openapi/v3"},"paths":{}}`)
		return
	}
	body, err := proto.Marshal(&openapi_v2.Document{
		Swagger: "2.0", Info: &openapi_v2.Info{Title: "Rookery", Version: "see /openapi/v3"}, Paths: &openapi_v2.Paths{},
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
	w.Write(body)
}

func index(w http.ResponseWriter, _ *http.Request) {
	groups, err := Groups()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	paths := map[string]any{}
	for gv, hash := range groups {
		paths[gv] = map[string]string{"serverRelativeURL": "/openapi/v3/" + gv + "?hash=" + hash}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"paths": paths})
}

func document(w http.ResponseWriter, r *http.Request) {
	suffix, contentType := jsonSuffix, "application/json"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi") {
		suffix, contentType = protoSuffix, protoType
	}
	gv := strings.TrimPrefix(r.URL.Path, "/openapi/v3/")
	f, err := open(gv, suffix)
	if err != nil {
		http.Error(w, "no document of "+gv, http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	if r.URL.Query().Get("hash") != "" {
		// The hash names the content, so that a client may keep it.
		w.Header().Set("Cache-Control", "public, immutable")
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		io.Copy(w, f)
		return
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	io.Copy(w, z)
}
