package customresources

import (
	"slices"
	"strings"
	"sync"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
)

// Upstream's priorities of what users define.
const (
	groupPriority   = 1000
	versionPriority = 100
)

// Groups is the list of groups at /apis in its older form.
type Groups interface {
	// Set says which versions of a group are defined, the preferred one first; none: the
	// group is not defined any more.
	Set(group string, versions ...string)
}

// found keeps the lists of groups at /apis, which are shared with the built-in groups.
type found struct {
	groups     Groups
	aggregated aggregated.ResourceManager

	mu    sync.Mutex
	state string              // which definitions, at which resource versions, the lists tell of
	lists map[string][]string // versions by group
}

// update makes the lists tell of these definitions and no others.
func (f *found) update(all []*definitionsv1.CustomResourceDefinition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := stateOf(all)
	if state == f.state {
		return
	}
	byGroup := map[string][]*definitionsv1.CustomResourceDefinition{}
	for _, crd := range all {
		byGroup[crd.Spec.Group] = append(byGroup[crd.Spec.Group], crd)
	}
	lists := map[string][]string{}
	for name, crds := range byGroup {
		if versions := versionsOf(crds); len(versions) > 0 {
			lists[name] = versions
			f.tell(name, versions, crds)
		}
	}
	for name := range f.lists {
		if lists[name] == nil {
			f.groups.Set(name)
			f.aggregated.RemoveGroup(name)
		}
	}
	f.state, f.lists = state, lists
}

func (f *found) tell(name string, versions []string, crds []*definitionsv1.CustomResourceDefinition) {
	f.groups.Set(name, versions...)
	for _, v := range versions {
		f.aggregated.AddGroupVersion(name, aggregatedOf(schema.GroupVersion{Group: name, Version: v}, crds))
		f.aggregated.SetGroupVersionPriority(metav1.GroupVersion{Group: name, Version: v}, groupPriority, versionPriority)
	}
	for _, v := range f.lists[name] {
		if !slices.Contains(versions, v) {
			f.aggregated.RemoveGroupVersion(metav1.GroupVersion{Group: name, Version: v})
		}
	}
}

func stateOf(all []*definitionsv1.CustomResourceDefinition) string {
	var b strings.Builder
	for _, crd := range all { // in the order of their keys
		b.WriteString(crd.Name + "@" + crd.ResourceVersion + "\n")
	}
	return b.String()
}
