package apiserver_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"

	"github.com/rundigitalplatform/rookery/raftstore"
)

var update = flag.Bool("update", false, "write testdata/access.txt anew")

// verbs are tried in this order: what deletes comes last.
var verbs = []struct{ name, method, query string }{
	{"get", "GET", ""}, {"list", "GET", ""}, {"watch", "GET", "?watch=true&timeoutSeconds=1"},
	{"create", "POST", ""}, {"update", "PUT", ""}, {"patch", "PATCH", ""}, {"delete", "DELETE", ""}, {"deletecollection", "DELETE", ""},
}

// TestLeastPrivilege has those with the fewest rights try everything that discovery
// offers, and compares what was not refused with testdata/access.txt. A line more
// there is a right more: look twice before -update. That a right is listed says that
// authorization lets the request pass; admission may still refuse it (NodeRestriction).
func TestLeastPrivilege(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	if _, err := p.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, all, err := p.admin.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	open := p.listen(t)
	var table bytes.Buffer
	for _, who := range []struct {
		name string
		cfg  *clientrest.Config
	}{
		{"nobody", open},
		{"service account", p.ClientConfig("system:serviceaccount:default:default", "system:serviceaccounts", "system:serviceaccounts:default")},
		{"peer h1", p.ClientConfig("system:node:h1", "system:nodes")},
	} {
		c := client(t, who.cfg)
		fmt.Fprintf(&table, "# %s\n", who.name)
		for _, path := range []string{"/", "/api", "/apis", "/apis/apps/v1", "/openapi/v2", "/openapi/v3", "/version", "/livez", "/readyz", "/healthz", "/metrics", "/openid/v1/jwks"} {
			if may(t, c, "GET", path) {
				fmt.Fprintf(&table, "%s\n", path)
			}
		}
		for _, list := range all {
			for _, r := range list.APIResources {
				if allowed := tried(t, c, list.GroupVersion, r); len(allowed) > 0 {
					fmt.Fprintf(&table, "%s %s: %s\n", list.GroupVersion, r.Name, strings.Join(allowed, " "))
				}
			}
		}
	}
	const golden = "testdata/access.txt"
	if *update {
		if err := os.WriteFile(golden, table.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	have, wanted := strings.Split(table.String(), "\n"), strings.Split(string(want), "\n")
	for _, line := range have {
		if !slices.Contains(wanted, line) {
			t.Errorf("now allowed: %s", line)
		}
	}
	for _, line := range wanted {
		if !slices.Contains(have, line) {
			t.Errorf("no longer allowed: %s", line)
		}
	}
}

// tried returns the verbs of a resource that were not refused. The objects are others'
// or do not exist: what is asked is who may, not whether it works.
func tried(t *testing.T, c kubernetes.Interface, groupVersion string, r metav1.APIResource) []string {
	t.Helper()
	base := "/apis/" + groupVersion
	if groupVersion == "v1" {
		base = "/api/v1"
	}
	if r.Namespaced {
		base += "/namespaces/kube-system"
	}
	resource, sub, _ := strings.Cut(r.Name, "/")
	var out []string
	for _, v := range verbs {
		if !slices.Contains(r.Verbs, v.name) {
			continue
		}
		path := base + "/" + resource
		one := v.name != "list" && v.name != "watch" && v.name != "deletecollection" && v.name != "create"
		if one || sub != "" {
			path += "/other"
		}
		if sub != "" {
			path += "/" + sub
		}
		if may(t, c, v.method, path+v.query) {
			out = append(out, v.name)
		}
	}
	return out
}

// may says whether a request got past authentication and authorization.
func may(t *testing.T, c kubernetes.Interface, method, path string) bool {
	t.Helper()
	code := 0
	path, query, _ := strings.Cut(path, "?")
	r := c.CoreV1().RESTClient().Verb(method).AbsPath(path)
	for _, kv := range strings.Split(query, "&") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			r = r.Param(k, v)
		}
	}
	if method == "PATCH" {
		r = r.SetHeader("Content-Type", "application/merge-patch+json")
	}
	if method != "GET" {
		r = r.Body([]byte("{}"))
	}
	r.Do(t.Context()).StatusCode(&code)
	if code == 0 {
		t.Errorf("%s %s: no answer", method, path)
	}
	return code != http.StatusForbidden && code != http.StatusUnauthorized
}
