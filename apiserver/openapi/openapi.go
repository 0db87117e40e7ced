// Package openapi serves the OpenAPI documents, v3 and v2, of the groups that the
// apiserver serves, which clients ask for to validate, explain and diff.
//
// The documents are made at build time, by the generator in gen from those that
// the k8s.io/kubernetes module publishes, cut down to what is served, and are
// embedded compressed: nothing is parsed or kept on the heap. What is not built in is
// described by a [Source] when somebody asks. It is called by apiserver, whose test
// compares the documents with what is really served.
package openapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
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

// documents serves the embedded documents and those of the sources.
type documents struct {
	sources []Source
	built   built
}

// Handler serves /openapi/v3, the index, /openapi/v3/<group version>, and the one
// document of /openapi/v2, which older clients ask for. What the sources describe
// is built when somebody asks for it; the embedded documents come first.
func Handler(sources ...Source) http.Handler {
	d := &documents{sources: sources, built: newBuilt()}
	mux := http.NewServeMux()
	mux.HandleFunc("/openapi/v3", d.index)
	mux.HandleFunc("/openapi/v3/", d.document)
	mux.HandleFunc("/openapi/v2", d.swagger)
	return mux
}

// groups is all that is described.
func (d *documents) groups(ctx context.Context) (map[string]string, error) {
	all, err := Groups()
	if err != nil {
		return nil, err
	}
	for _, s := range d.sources {
		more, err := s.Groups(ctx)
		if err != nil {
			return nil, err
		}
		for gv, hash := range more {
			if _, taken := all[gv]; !taken {
				all[gv] = hash
			}
		}
	}
	return all, nil
}

// find returns the hash of a document, "" if there is none, and its source, nil for an
// embedded one: for those no source is asked, which may have to ask another peer.
func (d *documents) find(ctx context.Context, gv string) (hash string, source Source, err error) {
	embedded, err := Groups()
	if err != nil || embedded[gv] != "" {
		return embedded[gv], nil, err
	}
	for _, s := range d.sources {
		groups, err := s.Groups(ctx)
		if err != nil || groups[gv] != "" {
			return groups[gv], s, err
		}
	}
	return "", nil, nil
}

func location(groupVersion, hash string) string {
	return "/openapi/v3/" + groupVersion + "?hash=" + hash
}

func (d *documents) index(w http.ResponseWriter, r *http.Request) {
	groups, err := d.groups(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	d.built.keep(groups)
	paths := map[string]any{}
	for gv, hash := range groups {
		paths[gv] = map[string]string{"serverRelativeURL": location(gv, hash)}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"paths": paths})
}

func (d *documents) document(w http.ResponseWriter, r *http.Request) {
	suffix, contentType := jsonSuffix, "application/json"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi") {
		suffix, contentType = protoSuffix, protoType
	}
	gv := strings.TrimPrefix(r.URL.Path, "/openapi/v3/")
	hash, source, err := d.find(r.Context(), gv)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if hash == "" {
		http.Error(w, "no document of "+gv, http.StatusNotFound)
		return
	}
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != hash {
			http.Redirect(w, r, location(gv, hash), http.StatusMovedPermanently)
			return
		}
		// The hash names the content, so that a client may keep it.
		w.Header().Set("Cache-Control", "public, immutable")
	}
	content, err := d.open(r.Context(), gv, hash, suffix, source)
	if err != nil {
		w.Header().Del("Cache-Control")
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer content.Close()
	d.send(w, r, content, hash, contentType)
}

// open returns a compressed document.
func (d *documents) open(ctx context.Context, gv, hash, suffix string, source Source) (io.ReadCloser, error) {
	if source == nil {
		return open(gv, suffix)
	}
	compressed, err := d.built.get(ctx, gv+suffix, hash, func() ([]byte, error) {
		text, err := source.Document(ctx, gv)
		if err != nil || suffix == jsonSuffix {
			return text, err
		}
		return toProto(text)
	})
	return io.NopCloser(bytes.NewReader(compressed)), err
}

// groupOf returns the group version that a built document is of; the one of version 2 is of none.
func groupOf(name string) (string, bool) {
	for _, suffix := range []string{jsonSuffix, protoSuffix} {
		if gv, ok := strings.CutSuffix(name, suffix); ok && strings.HasPrefix(gv, "apis/") {
			return gv, true
		}
	}
	return "", false
}

// send answers with a compressed document, as it is if the client takes that. hash "" means
// that nothing names the content.
func (d *documents) send(w http.ResponseWriter, r *http.Request, compressed io.Reader, hash, contentType string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	if hash != "" {
		etag := strconv.Quote(hash)
		w.Header().Set("Etag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		io.Copy(w, compressed)
		return
	}
	z, err := gzip.NewReader(compressed)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	io.Copy(w, z)
}
