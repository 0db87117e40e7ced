package apiserver_test

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/rundigitalplatform/rookery/apiserver/openapi"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// What the documents describe is what discovery offers: no more and no less.
func TestDocumentsMatchWhatIsServed(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	_, lists, err := p.admin.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	groups, err := openapi.Groups()
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		gv := "apis/" + list.GroupVersion
		if list.GroupVersion == "v1" {
			gv = "api/v1"
		}
		served := sets.New[string]()
		for _, r := range list.APIResources {
			served.Insert(r.Name)
		}
		if _, ok := groups[gv]; !ok {
			t.Errorf("%s is served but not described", gv)
			continue
		}
		delete(groups, gv)
		if described := described(t, gv); !described.Equal(served) {
			t.Errorf("%s: described but not served %v, served but not described %v", gv,
				sets.List(described.Difference(served)), sets.List(served.Difference(described)))
		}
	}
	if len(groups) > 0 {
		t.Errorf("described but not served: %v", groups)
	}
}

// kubectl says "no matches for kind" only if it gets a v2 document, an empty one.
func TestEmptyDocumentOfVersion2(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	doc, err := p.admin.Discovery().OpenAPISchema()
	if err != nil || doc.GetSwagger() != "2.0" || len(doc.GetPaths().GetPath()) != 0 {
		t.Errorf("got %v, %v", doc, err)
	}
}

// described returns the resources and subresources in a document's paths.
func described(t *testing.T, gv string) sets.Set[string] {
	t.Helper()
	r, err := openapi.Document(gv)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var doc struct{ Paths map[string]any }
	if err := json.NewDecoder(r).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	out := sets.New[string]()
	for path := range doc.Paths {
		path = strings.TrimPrefix(path, "/"+gv+"/")
		if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "watch/") {
			continue // the group version itself, or the old form of a watch
		}
		path = strings.TrimPrefix(path, "namespaces/{namespace}/")
		var name []string
		for _, part := range strings.Split(path, "/") {
			if part != "" && !strings.HasPrefix(part, "{") {
				name = append(name, part)
			}
		}
		if len(name) > 0 {
			out.Insert(strings.Join(name, "/"))
		}
	}
	return out
}
