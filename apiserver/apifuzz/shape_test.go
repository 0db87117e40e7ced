package apifuzz

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// endpoint is a resource or subresource of one version of a group.
type endpoint struct {
	group                 schema.GroupVersion
	resource, subresource string
	kind                  schema.GroupVersionKind // of the body
	namespaced            bool
	verbs                 []string
}

// path is where the endpoint is, for an object or, without a name, for all of them.
func (e endpoint) path(namespace, name string) string {
	p := "/apis/" + e.group.String()
	if e.group.Group == "" {
		p = "/api/" + e.group.Version
	}
	if e.namespaced && namespace != "" {
		p += "/namespaces/" + namespace
	}
	p += "/" + e.resource
	if name != "" {
		p += "/" + name
	}
	if e.subresource != "" {
		p += "/" + e.subresource
	}
	return p
}

// shape is what the server says it serves. It is asked for anew in each round, because
// requests may add to it.
type shape struct {
	endpoints []endpoint
	documents []string // paths of OpenAPI documents
	schemas   schemas
}

// schemas are the OpenAPI schemas of kinds, with the document that their references point into.
type schemas map[schema.GroupVersionKind]ofKind

type ofKind struct {
	schema     map[string]any
	components map[string]any
}

func (w *world) discover(t *testing.T) *shape {
	t.Helper()
	s := &shape{schemas: schemas{}}
	// A group whose server does not answer is an error beside the others' lists.
	_, lists, err := w.admin.Discovery().ServerGroupsAndResources()
	if len(lists) == 0 {
		t.Fatalf("discovery: %v", err)
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			s.endpoints = append(s.endpoints, describe(gv, r))
		}
	}
	documents, err := w.admin.Discovery().OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(documents)) {
		s.documents = append(s.documents, "/openapi/v3/"+path)
		data, err := documents[path].Schema("application/json")
		if err != nil {
			continue // of an extension that is gone by now
		}
		if err := s.schemas.read(data); err != nil {
			t.Fatalf("document of %s: %v", path, err)
		}
	}
	if len(s.endpoints) < 50 || len(s.schemas) < 50 {
		t.Fatalf("discovery names %d resources, the documents %d kinds", len(s.endpoints), len(s.schemas))
	}
	return s
}

func describe(gv schema.GroupVersion, r metav1.APIResource) endpoint {
	e := endpoint{group: gv, kind: gv.WithKind(r.Kind), namespaced: r.Namespaced, verbs: r.Verbs}
	e.resource, e.subresource, _ = strings.Cut(r.Name, "/")
	if r.Version != "" {
		e.kind.Group, e.kind.Version = r.Group, r.Version
	}
	return e
}

func (s schemas) read(document []byte) error {
	var doc struct {
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return err
	}
	for _, one := range doc.Components.Schemas {
		kind, _ := one.(map[string]any)
		names, _ := kind["x-kubernetes-group-version-kind"].([]any)
		if len(names) != 1 {
			continue // options and lists, which are of every group
		}
		of, _ := names[0].(map[string]any)
		group, _ := of["group"].(string)
		version, _ := of["version"].(string)
		name, _ := of["kind"].(string)
		s[schema.GroupVersionKind{Group: group, Version: version, Kind: name}] = ofKind{kind, doc.Components.Schemas}
	}
	return nil
}
