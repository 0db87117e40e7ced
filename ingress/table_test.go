package ingress

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// ingresses reads manifests, each a second younger than the one before.
func ingresses(t *testing.T, text string) (out []*networkingv1.Ingress) {
	t.Helper()
	for i, doc := range strings.Split(text, "\n---\n") {
		ing := &networkingv1.Ingress{}
		if err := yaml.UnmarshalStrict([]byte(doc), ing); err != nil {
			t.Fatal(err)
		}
		ing.Namespace, ing.CreationTimestamp = "shop", metav1.Unix(int64(i), 0)
		out = append(out, ing)
	}
	return out
}

// tableFor builds a table whose backends have the names of their Services.
func tableFor(t *testing.T, text string) (*table, []problem) {
	t.Helper()
	b := &builder{defaults: options{timeout: time.Minute}, backend: func(_ string, ref networkingv1.IngressBackend, _ protocol) (*backend, error) {
		return &backend{service: ref.Service.Name}, nil
	}}
	b.build(ingresses(t, text))
	return b.table, b.problems
}

func TestMatch(t *testing.T) {
	table, problems := tableFor(t, `
metadata: {name: paths}
spec:
  rules:
  - host: a.example
    http:
      paths:
      - {path: /foo, pathType: Exact, backend: {service: {name: exact-foo}}}
      - {path: /foo, pathType: Prefix, backend: {service: {name: prefix-foo}}}
      - {path: /foo/bar/, pathType: Prefix, backend: {service: {name: prefix-bar}}}
      - {path: /exact/, pathType: Exact, backend: {service: {name: exact-slash}}}
      - {path: /impl, pathType: ImplementationSpecific, backend: {service: {name: impl}}}
  - host: root.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: root}}}, {path: /aaa/bbb, pathType: Prefix, backend: {service: {name: long}}}, {path: /aaa, pathType: Prefix, backend: {service: {name: short}}}]}
  - host: "*.wild.example"
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: wild}}}]}
  - host: own.wild.example
    http: {paths: [{path: /own, pathType: Prefix, backend: {service: {name: own}}}]}
---
metadata: {name: default}
spec:
  defaultBackend: {service: {name: hosts-default}}
  rules:
  - host: default.example
    http: {paths: [{path: /x, pathType: Prefix, backend: {service: {name: x}}}]}
  - http: {paths: [{path: /anywhere, pathType: Prefix, backend: {service: {name: anywhere}}}]}
---
metadata: {name: late}
spec:
  defaultBackend: {service: {name: late-default}}
  rules:
  - host: a.example
    http: {paths: [{path: /foo, pathType: Prefix, backend: {service: {name: too-late}}}, {path: /new, pathType: Prefix, backend: {service: {name: new}}}]}
`)
	for _, tt := range []struct{ host, path, want string }{
		{"a.example", "/foo", "exact-foo"},
		{"a.example", "/foo/", "prefix-foo"},
		{"a.example", "/foo/x", "prefix-foo"},
		{"a.example", "/foobar", "late-default"}, // by elements, not letters
		{"a.example", "/foo/bar", "prefix-bar"},  // the slash at the end does not count
		{"a.example", "/foo/bar/", "prefix-bar"},
		{"a.example", "/foo/bar/baz", "prefix-bar"},
		{"a.example", "/foo/barbar", "prefix-foo"},
		{"a.example", "/FOO", "late-default"},
		{"a.example", "/exact/", "exact-slash"},
		{"a.example", "/exact", "late-default"}, // Exact is exact
		{"a.example", "/impl/x", "impl"},
		{"a.example", "/new", "new"},
		{"a.example", "/anywhere/x", "anywhere"},
		{"a.example", "/x/../foo/bar", "prefix-bar"}, // no way around a rule
		{"a.example", "//foo//bar", "prefix-bar"},
		{"root.example", "/", "root"},
		{"root.example", "", "root"},
		{"root.example", "/aaa/ccc", "short"},
		{"root.example", "/aaa/bbb/ccc", "long"},
		{"root.example", "/aaaxyz", "root"},
		{"x.wild.example", "/", "wild"},
		{"y.x.wild.example", "/", "hosts-default"}, // a wildcard is one label
		{"wild.example", "/", "hosts-default"},
		{"own.wild.example", "/own", "own"},
		{"own.wild.example", "/else", "wild"},
		{"default.example", "/x", "x"},
		{"default.example", "/y", "hosts-default"},
		{"none.example", "/anywhere", "anywhere"},
		{"none.example", "/", "hosts-default"},
	} {
		got := "404"
		if r, _ := table.match(tt.host, tt.path); r != nil {
			got = r.backend.service
		}
		if got != tt.want {
			t.Errorf("%s%s: %s, want %s", tt.host, tt.path, got, tt.want)
		}
	}
	if len(problems) != 1 || !strings.Contains(problems[0].message, "an older Ingress has it") {
		t.Errorf("problems: %v", problems)
	}
	if table, _ := tableFor(t, `{metadata: {name: x}, spec: {rules: [{host: a.example, http: {paths: [{path: /x, pathType: Exact, backend: {service: {name: x}}}]}}]}}`); true {
		if r, _ := table.match("b.example", "/x"); r != nil {
			t.Errorf("a host without rules leads to %s", r.backend.service)
		}
	}
}

func TestAnnotations(t *testing.T) {
	all := ingresses(t, `
metadata: {annotations: {ingress.rookery.io/timeout: 5m, ingress.rookery.io/max-body-size: 10Mi, ingress.rookery.io/ssl-redirect: "false", ingress.rookery.io/backend-protocol: h2c}}
---
metadata: {annotations: {ingress.rookery.io/timeout: soon, ingress.rookery.io/max-body-size: much, ingress.rookery.io/ssl-redirect: "often", ingress.rookery.io/backend-protocol: gopher}}`)
	defaults := options{timeout: time.Minute, maxBody: 7}
	if o, errs := parseOptions(all[0], defaults); len(errs) > 0 || o != (options{timeout: 5 * time.Minute, maxBody: 10 << 20, protocol: protocolH2C}) {
		t.Errorf("got %+v, %v", o, errs)
	}
	if o, errs := parseOptions(all[1], defaults); len(errs) != 4 || o != (options{redirect: true, timeout: time.Minute, maxBody: 7}) {
		t.Errorf("got %+v, %v", o, errs)
	}
}

// Of Secrets the proxy keeps certificates and nothing else, however often the informer asks.
func TestSlim(t *testing.T) {
	var obj any = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": {1}, "tls.key": {2}, "password": {3}}}
	for range 2 {
		var err error
		if obj, err = slim(obj); err != nil {
			t.Fatal(err)
		}
		if s := obj.(*corev1.Secret); s.Name != "a" || len(s.Data) != 2 || len(s.Data["tls.crt"]) != 1 || len(s.Data["tls.key"]) != 1 || s.Labels != nil {
			t.Errorf("got %v", s)
		}
	}
}

func TestClass(t *testing.T) {
	class := func(name, controller, isDefault string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault}},
			Spec:       networkingv1.IngressClassSpec{Controller: controller},
		}
	}
	theirs := class("nginx", "k8s.io/ingress-nginx", "true")
	for _, tt := range []struct {
		ing     string
		classes []*networkingv1.IngressClass
		want    bool
	}{
		{`spec: {ingressClassName: rookery}`, []*networkingv1.IngressClass{class("rookery", ControllerName, "")}, true},
		{`spec: {ingressClassName: door}`, []*networkingv1.IngressClass{class("door", ControllerName, "")}, true},
		{`spec: {ingressClassName: rookery}`, nil, false},
		{`spec: {ingressClassName: nginx}`, []*networkingv1.IngressClass{class("rookery", ControllerName, "true"), theirs}, false},
		{`metadata: {annotations: {kubernetes.io/ingress.class: rookery}}`, []*networkingv1.IngressClass{class("rookery", ControllerName, "")}, true},
		{`spec: {}`, []*networkingv1.IngressClass{class("rookery", ControllerName, "true")}, true},
		{`spec: {}`, []*networkingv1.IngressClass{class("rookery", ControllerName, ""), theirs}, false},
	} {
		if got := ours(ingresses(t, tt.ing)[0], tt.classes); got != tt.want {
			t.Errorf("%s: %v", tt.ing, got)
		}
	}
}
