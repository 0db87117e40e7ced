// Package registry is an image registry in memory, for tests: as much of the OCI
// distribution specification as a pull needs, with logins, and with the faults
// that registries have. What it serves comes from docker archives (package image).
//
// The tests of runtime/podman and node serve it on a loopback address; `lab
// registry` runs it in a host of the lab.
package registry

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Registry is one registry; its zero value is empty and open to all. It may be
// used from any number of goroutines.
type Registry struct {
	mu        sync.Mutex
	manifests map[string]content // repository:tag and repository@digest
	blobs     map[string][]byte  // by digest
	rules     []rule
	counts    map[string]int
	busy, top int // blobs that are being sent, and the most there were at once
}

type content struct {
	kind string
	data []byte
}

// rule says how requests for repositories with a prefix are answered.
type rule struct {
	prefix string
	Rule
}

// Rule is how a registry behaves for some of its repositories. The zero Rule is no restriction.
type Rule struct {
	User, Password string        // who may read; no User: everybody
	Status         int           // answer every request so; 0: properly
	Delay          time.Duration // before each blob
	Together       int           // each blob waits until so many were asked for at once, a minute at most
	Cut            bool          // send half of each blob, then close the connection
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// Set makes repositories whose name begins with prefix behave so. The last rule that fits counts.
func (r *Registry) Set(prefix string, rule_ Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = append(r.rules, rule{prefix, rule_})
}

func (r *Registry) rule(repository string) Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.rules) - 1; i >= 0; i-- {
		if strings.HasPrefix(repository, r.rules[i].prefix) {
			return r.rules[i].Rule
		}
	}
	return Rule{}
}

// Count says how many times a manifest of the repository was asked for (GET) by
// someone who may read it.
func (r *Registry) Count(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[repository]
}

// MostAtOnce is the greatest number of blobs that were sent, or held back, at the same time.
func (r *Registry) MostAtOnce() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.top
}

// Push adds the image of a docker archive under repository:tag and returns the digest of its manifest.
func (r *Registry) Push(name string, archive io.Reader) (digest string, err error) {
	repository, _, ok := strings.Cut(name, ":")
	if !ok {
		return "", fmt.Errorf("push %s: it has no tag", name)
	}
	config, layers, err := read(archive)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifests == nil {
		r.manifests, r.blobs, r.counts = map[string]content{}, map[string][]byte{}, map[string]int{}
	}
	described := []descriptor{}
	for _, layer := range layers {
		described = append(described, r.add(layerType, layer))
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": r.add(configType, config), "layers": described,
	})
	if err != nil {
		return "", fmt.Errorf("push %s: %w", name, err)
	}
	digest = digestOf(manifest)
	r.manifests[name] = content{manifestType, manifest}
	r.manifests[repository+"@"+digest] = content{manifestType, manifest}
	return digest, nil
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// add keeps a blob. Called with mu.
func (r *Registry) add(kind string, data []byte) descriptor {
	digest := digestOf(data)
	r.blobs[digest] = data
	return descriptor{kind, digest, len(data)}
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// read takes a docker archive of one image apart.
func read(archive io.Reader) (config []byte, layers [][]byte, err error) {
	files := map[string][]byte{}
	for tr := tar.NewReader(archive); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read archive: %w", err)
		}
		if files[header.Name], err = io.ReadAll(tr); err != nil {
			return nil, nil, fmt.Errorf("read archive: %w", err)
		}
	}
	var manifest []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		return nil, nil, fmt.Errorf("read manifest.json: %w", err)
	}
	if len(manifest) != 1 {
		return nil, nil, errors.New("not a docker archive of one image")
	}
	for _, name := range manifest[0].Layers {
		layers = append(layers, files[name])
	}
	return files[manifest[0].Config], layers, nil
}

// ServeHTTP implements http.Handler: /v2/, manifests and blobs, read only.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || req.Method != http.MethodGet && req.Method != http.MethodHead {
		fail(w, http.StatusNotFound, "UNSUPPORTED", "the registry has no such address")
		return
	}
	if path == "" {
		// A client that would be asked for a login later is asked here, or it never sends one.
		if _, _, sent := req.BasicAuth(); !sent && r.guarded() {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		}
		return
	}
	repository, what, digest := split(path)
	rule := r.rule(repository)
	if rule.Status != 0 {
		fail(w, rule.Status, "UNKNOWN", "the registry is told to fail")
		return
	}
	if user, password, _ := req.BasicAuth(); rule.User != "" && (user != rule.User || password != rule.Password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	switch what {
	case "manifests":
		r.manifest(w, req, repository, digest)
	case "blobs":
		r.blob(w, req, rule, digest)
	default:
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "the registry has no such address")
	}
}

func (r *Registry) guarded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rule := range r.rules {
		if rule.User != "" {
			return true
		}
	}
	return false
}

// split takes REPOSITORY/manifests/REFERENCE apart; a repository has slashes of its own.
func split(path string) (repository, what, reference string) {
	for _, what := range []string{"manifests", "blobs"} {
		if i := strings.LastIndex(path, "/"+what+"/"); i > 0 {
			return path[:i], what, path[i+len(what)+2:]
		}
	}
	return path, "", ""
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, repository, reference string) {
	key := repository + ":" + reference
	if strings.HasPrefix(reference, "sha256:") {
		key = repository + "@" + reference
	}
	r.mu.Lock()
	found, ok := r.manifests[key]
	if ok && req.Method == http.MethodGet {
		r.counts[repository]++
	}
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Docker-Content-Digest", digestOf(found.data))
	send(w, req, found.kind, found.data)
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, rule Rule, digest string) {
	r.mu.Lock()
	data, ok := r.blobs[digest]
	r.busy++
	r.top = max(r.top, r.busy)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.busy--
		r.mu.Unlock()
	}()
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-req.Context().Done():
			return false
		}
	}
	for began := time.Now(); r.MostAtOnce() < rule.Together && time.Since(began) < time.Minute; {
		if !wait(10 * time.Millisecond) {
			return
		}
	}
	if !wait(rule.Delay) {
		return
	}
	if rule.Cut {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:len(data)/2]) // whoever reads gets too little, which is the point
		panic(http.ErrAbortHandler)
	}
	send(w, req, "application/octet-stream", data)
}

func send(w http.ResponseWriter, req *http.Request, kind string, data []byte) {
	w.Header().Set("Content-Type", kind)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// fail answers as the distribution specification says.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	body, err := json.Marshal(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
	if err == nil {
		_, err = w.Write(body)
	}
	_ = err // the client is gone
}
