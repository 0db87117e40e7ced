package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

// swagger writes the one document of OpenAPI v2: what upstream's has of the group
// versions that are served.
func swagger(source, out string) error {
	raw, err := os.ReadFile(filepath.Join(source, "swagger.json"))
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	paths, definitions, without := doc["paths"].(map[string]any), doc["definitions"].(map[string]any), served()
	metrics, kinds, err := describeMetrics(paths, definitions, "#/definitions/")
	if err != nil {
		return err
	}
	for p := range paths {
		parts := strings.Split(strings.Trim(p, "/"), "/")
		if !isServed(parts, without) {
			delete(paths, p)
		}
	}
	maps.Copy(paths, metrics)
	maps.Copy(definitions, kinds)
	keepUsed(paths, definitions, "#/definitions/")
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	parsed, err := openapi_v2.ParseDocument(text)
	if err != nil {
		return err
	}
	binary, err := proto.MarshalOptions{Deterministic: true}.Marshal(parsed)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(out, "v2"), 0o755); err != nil {
		return err
	}
	if err := writeCompressed(filepath.Join(out, "v2", "swagger.json.gz"), text); err != nil {
		return err
	}
	return writeCompressed(filepath.Join(out, "v2", "swagger.pb.gz"), binary)
}

// isServed looks at a path's parts: api/v1/… or apis/GROUP/VERSION/….
func isServed(parts []string, served map[string][]string) bool {
	depth := 2
	if parts[0] == "apis" {
		depth = 3
	}
	if len(parts) < depth {
		return false
	}
	without, ok := served[strings.Join(parts[:depth], "/")]
	return ok && !slices.ContainsFunc(parts[depth:], func(p string) bool { return slices.Contains(without, p) })
}
