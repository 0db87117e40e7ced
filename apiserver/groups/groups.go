// Package groups keeps the list of API groups at /apis in its older form, whose groups
// may each have versions from several places: what is built in, what users define, what
// extension servers serve. Package apiserver makes the list and a [Part] for each place.
package groups

import (
	"net/http"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/discovery"
)

// List is the list of groups. Its methods, and those of its parts, may be called concurrently.
type List struct {
	served discovery.GroupManager

	mu    sync.Mutex // makes what a part says and what is served of it one step
	parts []*Part
}

// New makes a list that serves no groups yet, through served, which nothing else changes.
func New(served discovery.GroupManager) *List { return &List{served: served} }

// Part is one place that versions come from.
type Part struct {
	list     *List
	versions map[string][]string // by group; under the list's mu
}

// Part makes another part of the list. In a group, the versions of parts that were made
// before come first.
func (l *List) Part() *Part {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &Part{l, map[string][]string{}}
	l.parts = append(l.parts, p)
	return p
}

// Set says which versions of a group the part has, the preferred one first; none: it has
// nothing of the group. The group itself is served while any part has a version of it.
func (p *Part) Set(group string, versions ...string) {
	l := p.list
	l.mu.Lock()
	defer l.mu.Unlock()
	p.versions[group] = slices.Clone(versions)
	if len(versions) == 0 {
		delete(p.versions, group)
	}
	about := metav1.APIGroup{Name: group}
	for _, part := range l.parts {
		for _, v := range part.versions[group] {
			version := metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + v, Version: v}
			if !slices.Contains(about.Versions, version) {
				about.Versions = append(about.Versions, version)
			}
		}
	}
	if len(about.Versions) == 0 {
		l.served.RemoveGroup(group)
		return
	}
	about.PreferredVersion = about.Versions[0]
	l.served.AddGroup(about)
}

// Group is what all parts together have of a group, as it is told to a client; nil: nothing.
func (p *Part) Group(r *http.Request, name string) (*metav1.APIGroup, error) {
	all, err := p.list.served.Groups(r.Context(), r)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, func(g metav1.APIGroup) bool { return g.Name == name }); i >= 0 {
		return &all[i], nil
	}
	return nil, nil
}
