package aggregation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/transport"
)

const (
	// memory is how long it counts what an extension server said of itself. Upstream
	// asks each of them once a minute; here nobody is asked while nobody wants to know.
	memory = time.Minute
	// pause is how long a server is left alone that did not say it.
	pause = 10 * time.Second
	// patience is how long a client waits for what they say; upstream's 5 s.
	patience = 5 * time.Second
	// mostSaid bounds what is read of it: the largest, of many hundred kinds, is below 1 MB.
	mostSaid = 8 << 20
)

func compareVersions(x, y string) int { return version.CompareKubeAwareVersionStrings(x, y) }

// announce tells discovery which group versions came and went. What is in them is asked
// when somebody wants to know, see refresh. It is called with mu held.
func (a *Aggregator) announce(old, next *table) {
	for gv := range old.routes {
		if to := next.routes[gv]; to == nil || to.builtin && !to.available() {
			a.cfg.Discovery.RemoveGroupVersion(metav1.GroupVersion(gv))
		}
	}
	for _, to := range next.routes {
		if to.available() || !to.builtin {
			a.tell(to)
		}
	}
	now := next.groups()
	for name := range old.groups() {
		if now[name] == nil {
			a.cfg.Groups.Set(name)
		}
	}
	for name, routes := range now {
		var versions []string
		for _, r := range routes {
			versions = append(versions, r.gv.Version)
		}
		a.cfg.Groups.Set(name, versions...)
	}
}

// tell puts what is known of a group version into the aggregated document, marked as
// stale unless its server has said it. It is called with mu held.
func (a *Aggregator) tell(to *route) {
	to.notebook.mu.Lock()
	entry := apidiscoveryv2.APIVersionDiscovery{Version: to.gv.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale, Resources: to.notebook.resources}
	if to.available() && to.notebook.discovery.answered {
		entry.Freshness = apidiscoveryv2.DiscoveryFreshnessCurrent
	}
	to.notebook.mu.Unlock()
	a.cfg.Discovery.AddGroupVersion(to.gv.Group, entry)
	a.cfg.Discovery.SetGroupVersionPriority(metav1.GroupVersion(to.gv), int(to.spec.GroupPriorityMinimum), int(to.spec.VersionPriority))
}

// serveGroup answers /apis/GROUP, unless all that is served of it is built in.
func (a *Aggregator) serveGroup(w http.ResponseWriter, r *http.Request, name string) bool {
	routes := a.table.Load().groups()[name]
	if !slices.ContainsFunc(routes, func(r *route) bool { return !r.builtin }) || r.Method != http.MethodGet {
		return false
	}
	group, err := a.cfg.Groups.Group(r, name)
	if err != nil {
		a.cfg.Fail(w, r, err)
		return true
	}
	if group == nil {
		return false
	}
	responsewriters.WriteObjectNegotiated(a.cfg.Codecs, negotiation.DefaultEndpointRestrictions, schema.GroupVersion{}, w, r, http.StatusOK, group, false)
	return true
}

// refresh asks the extension servers that have not been asked for a while, all at once.
func (a *Aggregator) refresh(ctx context.Context, t *table) {
	var all sync.WaitGroup
	for _, to := range t.routes {
		if to.available() && to.notebook.due() {
			all.Go(func() { a.describe(ctx, to) })
		}
	}
	all.Wait()
}

// due tells whether the server is to be asked again.
func (n *notebook) due() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.discovery.due()
}

// describe asks one server what it serves, once for all who want to know.
func (a *Aggregator) describe(ctx context.Context, to *route) {
	_, err, _ := a.asking.Do("discovery "+to.name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		resources, err := a.askResources(ctx, to)
		to.notebook.mu.Lock()
		to.notebook.discovery = asked{time.Now(), err == nil}
		if err == nil { // else what it said before is shown as stale
			to.notebook.resources = resources
		}
		to.notebook.mu.Unlock()

		a.mu.Lock()
		defer a.mu.Unlock()
		// It may have been removed in the meantime, or lead to another server.
		if now := a.table.Load().routes[to.gv]; now != nil && now.notebook == to.notebook {
			a.tell(now)
		}
		return nil, err
	})
	if err != nil {
		a.cfg.Logger.Warn("an extension server does not say what it serves", "apiservice", to.name, "err", err)
	}
}

func (a *Aggregator) askResources(ctx context.Context, to *route) ([]apidiscoveryv2.APIResourceDiscovery, error) {
	contentType, body, err := a.ask(ctx, to, "/apis", discovery.AcceptV2)
	if gvk, matchErr := discovery.ContentTypeIsGVK(contentType, apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")); err == nil && matchErr == nil && gvk {
		return pick(body, to.gv)
	}
	// A server that does not know the new form is asked in the old one.
	if _, body, err = a.ask(ctx, to, "/apis/"+to.gv.String(), "application/json"); err != nil {
		return nil, err
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	return endpoints.ConvertGroupVersionIntoToDiscovery(list.APIResources)
}

// pick finds the resources of a group version.
func pick(body []byte, gv schema.GroupVersion) ([]apidiscoveryv2.APIResourceDiscovery, error) {
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	for _, g := range list.Items {
		for _, v := range g.Versions {
			if g.Name == gv.Group && v.Version == gv.Version {
				return v.Resources, nil
			}
		}
	}
	return nil, fmt.Errorf("the server does not serve %s", gv)
}

// ask gets something of an extension server, as the API itself.
func (a *Aggregator) ask(ctx context.Context, to *route, path, accept string) (contentType string, body []byte, err error) {
	location, err := a.locate(to)
	if err != nil {
		return "", nil, err
	}
	location.Path = path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return "", nil, err
	}
	r.Header.Set("Accept", accept)
	transport.SetAuthProxyHeaders(r, "system:kube-aggregator", "", []string{"system:masters"}, nil)
	resp, err := to.way.RoundTrip(r)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, mostSaid))
	switch {
	case err != nil:
		return "", nil, err
	case resp.StatusCode == http.StatusNotFound:
		return "", nil, fmt.Errorf("%s: %w", path, errNotServed)
	case resp.StatusCode != http.StatusOK:
		return "", nil, fmt.Errorf("%s: %s: %s", path, resp.Status, strings.TrimSpace(string(body[:min(len(body), 200)])))
	}
	return resp.Header.Get("Content-Type"), body, nil
}

var errNotServed = errors.New("the server does not serve it")
