package dnsserver

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"
)

// manifests is the cluster that the tests ask about. Node b is dead.
const manifests = `
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.43.0.20, clusterIPs: [10.43.0.20, "fd43::20"], ports: [{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]}
---
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.9], nodeName: a, conditions: {ready: true}}
---
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: sql, port: 5432, protocol: TCP}]}
---
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.5], hostname: db-0, nodeName: a, conditions: {ready: true}}
- {addresses: [10.42.1.5], hostname: db-1, nodeName: b, conditions: {ready: true}}
- {addresses: [10.42.2.5], hostname: db-2, nodeName: c, conditions: {ready: false}}
- {addresses: [10.42.2.6], nodeName: c}
---
kind: Service
metadata: {name: seed, namespace: shop}
spec: {clusterIP: None, clusterIPs: [None], publishNotReadyAddresses: true, ports: [{name: sql, port: 5432, protocol: TCP}]}
---
kind: EndpointSlice
metadata: {name: seed-1, namespace: shop, labels: {kubernetes.io/service-name: seed}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.7], nodeName: a, conditions: {ready: false}}
---
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: None, clusterIPs: [None]}
---
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}
---
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: Example.com}
---
kind: Service
metadata: {name: loop, namespace: shop}
spec: {type: ExternalName, externalName: loop.shop.svc.cluster.local}
---
kind: Service
metadata: {name: literal, namespace: shop}
spec: {type: ExternalName, externalName: 192.0.2.9}
---
kind: Namespace
metadata: {name: shop}
`

func testKube(t testing.TB) *Kube {
	t.Helper()
	k := emptyKube(t)
	load(t, k, manifests+lanManifests)
	return k
}

func emptyKube(t testing.TB) *Kube {
	t.Helper()
	key := cache.MetaNamespaceKeyFunc
	k := &Kube{
		namespaces: cache.NewIndexer(key, cache.Indexers{}),
		services:   cache.NewIndexer(key, serviceIndexers()),
		slices:     cache.NewIndexer(key, sliceIndexers()),
		ingresses:  cache.NewIndexer(key, ingressIndexers()),
	}
	must(t, k.services.AddIndexers(cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}))
	return k
}

// load puts manifests into k.
func load(t testing.TB, k *Kube, manifests string) {
	t.Helper()
	for _, doc := range strings.Split(manifests, "\n---\n") {
		var head metav1.TypeMeta
		must(t, yaml.Unmarshal([]byte(doc), &head))
		switch head.Kind {
		case "Namespace":
			addTo(t, k.namespaces, doc, &corev1.Namespace{})
		case "Service":
			addTo(t, k.services, doc, &corev1.Service{})
		case "EndpointSlice":
			addTo(t, k.slices, doc, &discoveryv1.EndpointSlice{})
		case "Ingress":
			addTo(t, k.ingresses, doc, &networkingv1.Ingress{})
		default:
			t.Fatalf("manifest of kind %q", head.Kind)
		}
	}
}

func addTo(t testing.TB, indexer cache.Indexer, doc string, obj any) {
	t.Helper()
	must(t, yaml.UnmarshalStrict([]byte(doc), obj))
	must(t, indexer.Add(obj))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testConfig(t testing.TB) Config {
	return Config{
		Addrs:     []netip.AddrPort{netip.MustParseAddrPort("10.43.0.10:53")},
		Source:    testKube(t),
		Alive:     func(node string) bool { return node != "b" },
		Upstreams: []string{},
		Peers: func(name string) []netip.Addr {
			switch name {
			case "north":
				return addrs([]string{"192.0.2.1"})
			case "east":
				return addrs([]string{"192.0.2.3", "2001:db8::3"})
			}
			return nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

func testServer(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	must(t, err)
	return s
}
