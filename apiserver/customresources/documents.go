package customresources

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/spec3"
)

// Upstream's controllers build the documents of every definition when it changes. Most
// are never read, so here each is built when it is asked for; that it changed is told
// by a hash that needs no document.

// Groups implements openapi.Source: the group versions of custom resources and the hash
// of each one's document.
func (a *API) Groups(ctx context.Context) (map[string]string, error) {
	all, err := a.established(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for gv, crds := range byVersion(all) {
		out["apis/"+gv.String()] = a.hash(crds)
	}
	return out, nil
}

// Document implements openapi.Source: the OpenAPI v3 document of one of Groups.
func (a *API) Document(ctx context.Context, groupVersion string) ([]byte, error) {
	gv, err := schema.ParseGroupVersion(strings.TrimPrefix(groupVersion, "apis/"))
	if err != nil {
		return nil, fmt.Errorf("document of %s: %w", groupVersion, fs.ErrNotExist)
	}
	all, err := a.established(ctx)
	if err != nil {
		return nil, err
	}
	var parts []*spec3.OpenAPI
	for _, crd := range byVersion(all)[gv] {
		part, err := builder.BuildOpenAPIV3(crd, gv.Version, builder.Options{IncludeSelectableFields: true})
		if err != nil {
			return nil, fmt.Errorf("build document of %s: %w", crd.Name, err)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("document of %s: %w", groupVersion, fs.ErrNotExist)
	}
	merged, err := builder.MergeSpecsV3(parts...)
	if err != nil {
		return nil, fmt.Errorf("build document of %s: %w", gv, err)
	}
	return json.Marshal(merged)
}

// Swagger implements openapi.Source: the definitions and paths that custom resources add
// to the one document of OpenAPI v2, and their hash, which is "" if there are none.
func (a *API) Swagger(ctx context.Context) (hash string, build func() (definitions, paths map[string]json.RawMessage, err error), err error) {
	all, err := a.established(ctx)
	if err != nil || len(all) == 0 {
		return "", nil, err
	}
	return a.hash(all), func() (map[string]json.RawMessage, map[string]json.RawMessage, error) {
		definitions, paths := map[string]json.RawMessage{}, map[string]json.RawMessage{}
		for _, crd := range all {
			if err := describeOld(crd, definitions, paths); err != nil {
				return nil, nil, fmt.Errorf("build document of %s: %w", crd.Name, err)
			}
		}
		return definitions, paths, nil
	}, nil
}

// describeOld adds a definition's part of OpenAPI v2.
func describeOld(crd *definitionsv1.CustomResourceDefinition, definitions, paths map[string]json.RawMessage) error {
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		part, err := builder.BuildOpenAPIV2(crd, v.Name, builder.Options{V2: true, IncludeSelectableFields: true})
		if err != nil {
			return err
		}
		for name, s := range handler.PruneDefaults(part.Definitions) {
			if definitions[name], err = json.Marshal(s); err != nil {
				return err
			}
		}
		for name, p := range part.Paths.Paths {
			if paths[name], err = json.Marshal(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// byVersion sorts definitions by the group versions that they serve.
func byVersion(all []*definitionsv1.CustomResourceDefinition) map[schema.GroupVersion][]*definitionsv1.CustomResourceDefinition {
	out := map[schema.GroupVersion][]*definitionsv1.CustomResourceDefinition{}
	for _, crd := range all {
		for _, v := range crd.Spec.Versions {
			if v.Served {
				gv := schema.GroupVersion{Group: crd.Spec.Group, Version: v.Name}
				out[gv] = append(out[gv], crd)
			}
		}
	}
	return out
}

// hash names what documents are built from: the same on every peer, and another one
// after each change of a spec.
func (a *API) hash(crds []*definitionsv1.CustomResourceDefinition) string {
	h := sha256.New()
	fmt.Fprintln(h, a.cfg.KubernetesVersion)
	for _, crd := range crds { // in the order of their keys
		fmt.Fprintln(h, crd.Name, crd.UID, crd.Generation)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
