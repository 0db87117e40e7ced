package apiserver_test

import (
	"encoding/json"
	"errors"
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

// The document of version 2 has the paths of those of version 3.
func TestDocumentOfVersion2(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	doc, err := p.admin.Discovery().OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	old := sets.New[string]()
	for _, path := range doc.GetPaths().GetPath() {
		old.Insert(path.Name)
	}
	groups, err := openapi.Groups()
	if err != nil {
		t.Fatal(err)
	}
	all := sets.New[string]()
	for gv := range groups {
		all = all.Union(paths(t, gv))
	}
	if !old.Equal(all) {
		t.Errorf("only in version 2 %v, only in version 3 %v", sets.List(old.Difference(all)), sets.List(all.Difference(old)))
	}
	raw, err := p.admin.CoreV1().RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").Do(t.Context()).Raw()
	var asJSON struct{ Definitions map[string]any }
	if err := errors.Join(err, json.Unmarshal(raw, &asJSON)); err != nil || asJSON.Definitions["io.k8s.api.core.v1.Pod"] == nil {
		t.Errorf("as JSON: %d definitions, %v", len(asJSON.Definitions), err)
	}
}

// described returns the resources and subresources in a document's paths.
func described(t *testing.T, gv string) sets.Set[string] {
	t.Helper()
	out := sets.New[string]()
	for path := range paths(t, gv) {
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

func paths(t *testing.T, gv string) sets.Set[string] {
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
	return sets.KeySet(doc.Paths)
}
