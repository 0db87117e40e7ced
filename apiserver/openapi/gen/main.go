// Command gen writes the documents that package openapi embeds: for each group
// version served, the document that the k8s.io/kubernetes module publishes,
// without the resources and schemas that are not served, as compressed JSON and
// as compressed gnostic protobuf. It is run by go generate in apiserver/openapi
// and needs the module's source.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

func main() {
	if err := run("docs"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// served is each group version with the resources of it that are not served.
func served() map[string][]string {
	return map[string][]string{
		"api/v1":                            {"componentstatuses"},
		"apis/apps/v1":                      nil,
		"apis/authentication.k8s.io/v1":     nil,
		"apis/authorization.k8s.io/v1":      nil,
		"apis/autoscaling/v1":               nil,
		"apis/autoscaling/v2":               nil,
		"apis/batch/v1":                     nil,
		"apis/coordination.k8s.io/v1":       nil,
		"apis/discovery.k8s.io/v1":          nil,
		"apis/events.k8s.io/v1":             nil,
		"apis/networking.k8s.io/v1":         {"ipaddresses", "servicecidrs"},
		"apis/node.k8s.io/v1":               nil,
		"apis/policy/v1":                    nil,
		"apis/rbac.authorization.k8s.io/v1": nil,
		"apis/scheduling.k8s.io/v1":         nil,
		"apis/storage.k8s.io/v1":            {"volumeattributesclasses"},
	}
}

func run(out string) error {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return fmt.Errorf("find the k8s.io/kubernetes module: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(dir)), "api", "openapi-spec", "v3")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for gv, without := range served() {
		if err := convert(source, out, gv, without); err != nil {
			return fmt.Errorf("convert %s: %w", gv, err)
		}
	}
	return nil
}

func convert(source, out, gv string, without []string) error {
	flat := strings.ReplaceAll(gv, "/", "__")
	raw, err := os.ReadFile(filepath.Join(source, flat+"_openapi.json"))
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	cut(doc, without)
	text, err := json.Marshal(doc) // keys sorted: the same input gives the same output
	if err != nil {
		return err
	}
	parsed, err := openapi_v3.ParseDocument(text)
	if err != nil {
		return err
	}
	binary, err := proto.MarshalOptions{Deterministic: true}.Marshal(parsed)
	if err != nil {
		return err
	}
	hash := sha256.Sum256(text)
	base := filepath.Join(out, fmt.Sprintf("%s@%x", flat, hash[:8]))
	if err := writeCompressed(base+".json.gz", text); err != nil {
		return err
	}
	return writeCompressed(base+".pb.gz", binary)
}

// cut removes the paths of resources and then the schemas nothing refers to any more.
func cut(doc map[string]any, without []string) {
	paths := doc["paths"].(map[string]any)
	for p := range paths {
		for _, part := range strings.Split(p, "/") {
			if slices.Contains(without, part) {
				delete(paths, p)
				break
			}
		}
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	used := map[string]bool{}
	var visit func(any)
	visit = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, "#/components/schemas/")
				if !used[name] {
					used[name] = true
					visit(schemas[name])
				}
			}
			for _, x := range v {
				visit(x)
			}
		case []any:
			for _, x := range v {
				visit(x)
			}
		}
	}
	visit(paths)
	for name := range schemas {
		if !used[name] {
			delete(schemas, name)
		}
	}
}

func writeCompressed(path string, content []byte) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(content); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
