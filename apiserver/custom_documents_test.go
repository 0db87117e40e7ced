package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/openapi"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// documentURL is where the index says that the document of widgets is, "" if it is not there.
func (c *custom) documentURL(t *testing.T) string {
	t.Helper()
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(c.do(t, "GET", "/openapi/v3", "").body, &index); err != nil {
		t.Fatal(err)
	}
	if index.Paths["apis/apps/v1"].ServerRelativeURL == "" {
		t.Error("the built-in groups are not described any more")
	}
	return index.Paths["apis/example.com/v1"].ServerRelativeURL
}

func TestDocumentsOfCustomResources(t *testing.T) {
	store := raftstore.NewMemory()
	c := startCustom(t, store)
	c.lead(t)
	if at := c.documentURL(t); at != "" {
		t.Errorf("described before it is defined: %s", at)
	}
	embedded := c.do(t, "GET", "/openapi/v2", "")
	c.define(t, widgets)
	at := c.documentURL(t)
	doc := c.do(t, "GET", at, "")
	schemas := doc.json(t)["components"].(map[string]any)["schemas"].(map[string]any)
	widget, ok := schemas["com.example.v1.Widget"].(map[string]any)
	if !ok || doc.header.Get("Etag") == "" || !strings.Contains(doc.header.Get("Cache-Control"), "immutable") {
		t.Fatalf("%s: headers %v, schemas %d", at, doc.header, len(schemas))
	}
	size := widget["properties"].(map[string]any)["spec"].(map[string]any)["properties"].(map[string]any)["size"].(map[string]any)
	if size["description"] != "How big it is." {
		t.Errorf("size is %v", size)
	}
	if a := c.do(t, "GET", at, "", "If-None-Match: "+doc.header.Get("Etag")); a.code != http.StatusNotModified || len(a.body) != 0 {
		t.Errorf("what has not changed: %d", a.code)
	}
	// The protobuf form, as kubectl asks for it.
	paths, err := openapi.NewClient(c.admin.CoreV1().RESTClient()).Paths()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := paths["apis/example.com/v1"].Schema("application/com.github.proto-openapi.spec.v3@v1.0+protobuf")
	if err != nil || !strings.Contains(string(raw), "com.example.v1.Widget") || json.Valid(raw) {
		t.Errorf("protobuf: %d bytes, %v", len(raw), err)
	}

	// Another peer says the same.
	other := startCustom(t, store)
	if there := other.documentURL(t); there != at {
		t.Errorf("one peer has %s, another %s", at, there)
	}

	c.change(t, "widgets.example.com", func(crd *definitionsv1.CustomResourceDefinition) {
		spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		spec.Properties["colour"] = definitionsv1.JSONSchemaProps{Type: "string"}
	})
	newer := c.documentURL(t)
	if newer == at || !strings.Contains(string(c.do(t, "GET", newer, "").body), "colour") {
		t.Errorf("after a change: %s, before %s", newer, at)
	}
	if moved := c.do(t, "GET", at, ""); !strings.Contains(string(moved.body), "colour") || moved.header.Get("Etag") == doc.header.Get("Etag") {
		t.Errorf("who asks for the old hash gets %s, %v", moved.header.Get("Etag"), moved.code)
	}

	old, err := c.admin.Discovery().OpenAPISchema() // version 2, protobuf
	if err != nil {
		t.Fatal(err)
	}
	names, twice := map[string]int{}, []string{}
	for _, d := range old.GetDefinitions().GetAdditionalProperties() {
		if names[d.Name]++; names[d.Name] == 2 {
			twice = append(twice, d.Name)
		}
	}
	if names["com.example.v1.Widget"] != 1 || names["io.k8s.api.core.v1.Pod"] != 1 || len(twice) > 0 {
		t.Errorf("version 2, protobuf: %d definitions, twice %v", len(names), twice)
	}
	merged := c.do(t, "GET", "/openapi/v2", "").json(t)
	if merged["definitions"].(map[string]any)["com.example.v1.Widget"] == nil || merged["paths"].(map[string]any)[widgetsPath2] == nil || merged["paths"].(map[string]any)["/api/v1/pods"] == nil {
		t.Error("version 2, JSON: a path or definition is missing")
	}
	if err := c.definitions.Delete(t.Context(), "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "described no more", func() bool { return c.documentURL(t) == "" })
	if a := c.do(t, "GET", newer, ""); a.code != http.StatusNotFound {
		t.Errorf("a document that is gone: %d", a.code)
	}
	if now := c.do(t, "GET", "/openapi/v2", ""); string(now.body) != string(embedded.body) {
		t.Error("version 2 is not the embedded document again")
	}
}

const widgetsPath2 = "/apis/example.com/v1/namespaces/{namespace}/widgets"
