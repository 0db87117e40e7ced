package aggregation

import (
	"net/http"
	"slices"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/controllers/status/remote"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// table has a route for each group version that an extension server serves.
type table struct {
	routes map[schema.GroupVersion]*route
}

// route leads to an extension server. It is not changed once it is in a table; what has
// been learnt from the server is in its notes, which go on from table to table.
type route struct {
	name     string // of the APIService
	gv       schema.GroupVersion
	spec     apiregistrationv1.APIServiceSpec
	why      string // it is not available; empty: it is
	builtin  bool   // the API serves the group version itself, while this is not available
	way      http.RoundTripper
	noWay    error // what keeps way from being made
	notebook *notebook
}

// notebook is what an extension server said of itself.
type notebook struct {
	mu        sync.Mutex
	discovery asked
	resources []apidiscoveryv2.APIResourceDiscovery
	documents asked
	paths     map[string]any // the index of its documents
}

// asked is when a server was asked for something; zero: not yet.
type asked struct {
	at       time.Time
	answered bool
}

// due tells whether it is to be asked again.
func (a asked) due() bool {
	if a.answered {
		return time.Since(a.at) > memory
	}
	return time.Since(a.at) > pause
}

func (r *route) available() bool { return r.why == "" }

// groups are those with a route, each with its versions, the most important first.
func (t *table) groups() map[string][]*route {
	out := map[string][]*route{}
	for _, r := range t.routes {
		out[r.gv.Group] = append(out[r.gv.Group], r)
	}
	for _, routes := range out {
		slices.SortFunc(routes, func(x, y *route) int {
			if d := y.spec.VersionPriority - x.spec.VersionPriority; d != 0 {
				return int(d)
			}
			return -compareVersions(x.gv.Version, y.gv.Version)
		})
	}
	return out
}

// apply makes a table of what is stored and tells of it.
func (a *Aggregator) apply(stored []*raftstore.KV) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, next := a.table.Load(), &table{routes: map[schema.GroupVersion]*route{}}
	for _, kv := range stored {
		object, err := runtime.Decode(a.decode, kv.Value)
		service, ok := object.(*apiregistrationv1.APIService)
		if err != nil || !ok {
			a.cfg.Logger.Error("an APIService is not readable", "key", kv.Key, "err", err)
			continue
		}
		gv := schema.GroupVersion{Group: service.Spec.Group, Version: service.Spec.Version}
		replaceable, builtin := a.cfg.Builtin[gv]
		if service.Spec.Service == nil || builtin && !replaceable {
			continue
		}
		next.routes[gv] = a.route(service, gv, old.routes[gv])
	}
	a.table.Store(next)
	a.announce(old, next)
	a.closeUnused(old, next)
	if len(next.routes) > 0 && !a.woken {
		a.woken = true
		close(a.first)
	}
}

// route keeps what the one before it has if it leads to the same server.
func (a *Aggregator) route(s *apiregistrationv1.APIService, gv schema.GroupVersion, before *route) *route {
	_, builtin := a.cfg.Builtin[gv]
	r := &route{name: s.Name, gv: gv, spec: *s.Spec.DeepCopy(), why: unavailable(s), builtin: builtin, notebook: &notebook{}}
	if before != nil && before.noWay == nil && sameServer(&before.spec, &r.spec) {
		r.way = before.way
		if before.available() == r.available() {
			r.notebook = before.notebook
		}
		return r
	}
	proof, err := a.proof()
	if err != nil {
		r.noWay = err
		return r
	}
	r.way, r.noWay = transport.New(remote.BuildTransportConfig(nil, proof.Cert, proof.Key, s))
	return r
}

func sameServer(x, y *apiregistrationv1.APIServiceSpec) bool {
	port := func(s *apiregistrationv1.APIServiceSpec) int32 {
		if s.Service.Port == nil {
			return 0
		}
		return *s.Service.Port
	}
	return x.Service.Namespace == y.Service.Namespace && x.Service.Name == y.Service.Name && port(x) == port(y) &&
		x.InsecureSkipTLSVerify == y.InsecureSkipTLSVerify && slices.Equal(x.CABundle, y.CABundle)
}

// unavailable says why requests are not forwarded; empty: they are.
func unavailable(s *apiregistrationv1.APIService) string {
	for _, c := range s.Status.Conditions {
		switch {
		case c.Type != apiregistrationv1.Available:
		case c.Status == apiregistrationv1.ConditionTrue:
			return ""
		default:
			return c.Reason + ": " + c.Message
		}
	}
	return "it has not been checked yet"
}

// closeUnused lets go of connections to servers that no route leads to any more. A
// transport may be shared by routes whose servers are known by the same CA and name.
func (a *Aggregator) closeUnused(old, next *table) {
	used := map[http.RoundTripper]bool{}
	for _, r := range next.routes {
		used[r.way] = true
	}
	for _, r := range old.routes {
		if r.way != nil && !used[r.way] {
			utilnet.CloseIdleConnectionsFor(r.way)
		}
	}
}
