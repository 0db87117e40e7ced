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
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

func main() {
	// It replaces the folder as a whole, so it had better be the right one.
	if _, err := os.Stat("openapi.go"); err != nil {
		fmt.Fprintln(os.Stderr, "gen: run it in apiserver/openapi, as go generate does")
		os.Exit(1)
	}
	if err := run("docs"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// served is each group version with the resources of it that are not served.
func served() map[string][]string {
	return map[string][]string{
		"api/v1":                               nil,
		"apis/admissionregistration.k8s.io/v1": nil,
		"apis/apiextensions.k8s.io/v1":         nil,
		"apis/apiregistration.k8s.io/v1":       nil,
		"apis/apps/v1":                         nil,
		"apis/authentication.k8s.io/v1":        nil,
		"apis/authorization.k8s.io/v1":         nil,
		"apis/autoscaling/v1":                  nil,
		"apis/autoscaling/v2":                  nil,
		"apis/batch/v1":                        nil,
		"apis/certificates.k8s.io/v1":          nil,
		"apis/coordination.k8s.io/v1":          nil,
		"apis/discovery.k8s.io/v1":             nil,
		"apis/events.k8s.io/v1":                nil,
		"apis/flowcontrol.apiserver.k8s.io/v1": nil,
		"apis/storagemigration.k8s.io/v1":      nil,
		"apis/networking.k8s.io/v1":            nil,
		"apis/node.k8s.io/v1":                  nil,
		"apis/policy/v1":                       nil,
		"apis/rbac.authorization.k8s.io/v1":    nil,
		"apis/scheduling.k8s.io/v1":            nil,
		"apis/storage.k8s.io/v1":               {"volumeattributesclasses"},
	}
}

func run(out string) error {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return fmt.Errorf("find the k8s.io/kubernetes module: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(dir)), "api", "openapi-spec")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for gv, without := range served() {
		if err := convert(filepath.Join(source, "v3"), out, gv, without); err != nil {
			return fmt.Errorf("convert %s: %w", gv, err)
		}
	}
	if err := convertMetrics(filepath.Join(source, "v3"), out); err != nil {
		return fmt.Errorf("convert %s: %w", metricsPath, err)
	}
	if err := swagger(source, out); err != nil {
		return fmt.Errorf("convert swagger: %w", err)
	}
	return nil
}

func convert(source, out, gv string, without []string) error {
	doc, err := read(source, gv)
	if err != nil {
		return err
	}
	cut(doc, without)
	return writeDocument(out, gv, doc)
}

// convertMetrics writes the document that Kubernetes does not publish.
func convertMetrics(source, out string) error {
	doc, err := read(source, "api/v1")
	if err != nil {
		return err
	}
	components := doc["components"].(map[string]any)
	schemas := components["schemas"].(map[string]any)
	paths, more, err := describeMetrics(doc["paths"].(map[string]any), schemas, "#/components/schemas/")
	if err != nil {
		return err
	}
	doc["paths"] = paths
	maps.Copy(schemas, more)
	cut(doc, nil)
	return writeDocument(out, metricsPath, doc)
}

func read(source, gv string) (doc map[string]any, err error) {
	raw, err := os.ReadFile(filepath.Join(source, strings.ReplaceAll(gv, "/", "__")+"_openapi.json"))
	if err != nil {
		return nil, err
	}
	return doc, json.Unmarshal(raw, &doc)
}

func writeDocument(out, gv string, doc map[string]any) error {
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
	base := filepath.Join(out, fmt.Sprintf("%s@%x", strings.ReplaceAll(gv, "/", "__"), hash[:8]))
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
	keepUsed(paths, doc["components"].(map[string]any)["schemas"].(map[string]any), "#/components/schemas/")
}

// keepUsed removes the schemas that nothing in paths refers to, directly or not.
func keepUsed(paths, schemas map[string]any, prefix string) {
	used := map[string]bool{}
	var visit func(any)
	visit = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, prefix)
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
