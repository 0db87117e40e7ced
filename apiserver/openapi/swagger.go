package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

const (
	swaggerJSON   = "docs/v2/swagger.json.gz"
	swaggerProto  = "docs/v2/swagger.pb.gz"
	swaggerV2Type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
)

// swagger serves the document of OpenAPI v2: the embedded one as it is, or with what the
// sources add, put together when somebody asks for it.
func (d *documents) swagger(w http.ResponseWriter, r *http.Request) {
	name, contentType := swaggerJSON, "application/json"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi") {
		name, contentType = swaggerProto, swaggerV2Type
	}
	content, hash, err := d.merged(r, name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	d.send(w, r, content, hash, contentType)
}

type additions struct{ definitions, paths map[string]json.RawMessage }

// merged returns the compressed document in one form, and a hash that is "" for the embedded one.
func (d *documents) merged(r *http.Request, name string) (io.Reader, string, error) {
	var hash string
	var builds []func() (definitions, paths map[string]json.RawMessage, err error)
	for _, s := range d.sources {
		h, build, err := s.Swagger(r.Context())
		if err != nil {
			return nil, "", err
		}
		if h != "" {
			hash += h
			builds = append(builds, build)
		}
	}
	base, err := docs.ReadFile(name)
	if err != nil || hash == "" {
		return bytes.NewReader(base), "", err
	}
	compressed, err := d.built.get(r.Context(), name, hash, func() ([]byte, error) {
		more := additions{map[string]json.RawMessage{}, map[string]json.RawMessage{}}
		for _, build := range builds {
			definitions, paths, err := build()
			if err != nil {
				return nil, err
			}
			maps.Copy(more.definitions, definitions)
			maps.Copy(more.paths, paths)
		}
		if name == swaggerProto {
			return mergeProto(base, more)
		}
		return mergeJSON(base, more)
	})
	return bytes.NewReader(compressed), hash, err
}

// parts are those of a document of version 2 that are merged.
type parts struct {
	Definitions map[string]json.RawMessage `json:"definitions"`
	Paths       map[string]json.RawMessage `json:"paths"`
}

func decompress(compressed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("read embedded document: %w", err)
	}
	return io.ReadAll(z)
}

// mergeJSON adds what the document does not have yet.
func mergeJSON(compressed []byte, more additions) ([]byte, error) {
	text, err := decompress(compressed)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	var p parts
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("read embedded document: %w", err)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("read embedded document: %w", err)
	}
	maps.Copy(more.definitions, p.Definitions)
	maps.Copy(more.paths, p.Paths)
	if all["definitions"], err = json.Marshal(more.definitions); err != nil {
		return nil, err
	}
	if all["paths"], err = json.Marshal(more.paths); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// mergeProto does the same to the protobuf form. Two messages one after the other are
// one message with the lists of both, so only the addition is parsed, not the whole.
func mergeProto(compressed []byte, more additions) ([]byte, error) {
	known, err := docs.ReadFile(swaggerJSON)
	if err != nil {
		return nil, err
	}
	text, err := decompress(known)
	if err != nil {
		return nil, err
	}
	var p parts
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("read embedded document: %w", err)
	}
	for name := range p.Definitions {
		delete(more.definitions, name)
	}
	for name := range p.Paths {
		delete(more.paths, name)
	}
	text, err = json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]string{"title": "Kubernetes", "version": "v1"}, "paths": more.paths, "definitions": more.definitions,
	})
	if err != nil {
		return nil, err
	}
	added, err := openapi_v2.ParseDocument(text)
	if err != nil {
		return nil, fmt.Errorf("parse additions: %w", err)
	}
	tail, err := proto.MarshalOptions{Deterministic: true}.Marshal(&openapi_v2.Document{Paths: added.Paths, Definitions: added.Definitions})
	if err != nil {
		return nil, err
	}
	base, err := decompress(compressed)
	if err != nil {
		return nil, err
	}
	return append(base, tail...), nil
}
