package groups

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/client-go/kubernetes/scheme"
)

// A group that several places serve has all their versions, in whatever order they say so.
func TestParts(t *testing.T) {
	l := New(discovery.NewRootAPIsHandler(discovery.DefaultAddresses{}, scheme.Codecs))
	builtin, defined, extended := l.Part(), l.Part(), l.Part()
	check := func(want string) {
		t.Helper()
		group, err := builtin.Group(httptest.NewRequestWithContext(t.Context(), "GET", "/apis", nil), "x.test")
		if err != nil {
			t.Fatal(err)
		}
		have := "nothing"
		if group != nil {
			var names []string
			for _, v := range group.Versions {
				if v.GroupVersion != "x.test/"+v.Version {
					t.Errorf("%+v", v)
				}
				names = append(names, v.Version)
			}
			have = fmt.Sprintf("%s, preferred %s", strings.Join(names, " "), group.PreferredVersion.Version)
		}
		if have != want {
			t.Errorf("the group has %s, want %s", have, want)
		}
	}
	check("nothing")
	extended.Set("x.test", "v3")
	check("v3, preferred v3")
	defined.Set("x.test", "v2", "v1")
	check("v2 v1 v3, preferred v2")
	extended.Set("x.test", "v3", "v1")
	defined.Set("x.test", "v2")
	check("v2 v3 v1, preferred v2")
	builtin.Set("x.test", "v1")
	builtin.Set("y.test", "v1")
	check("v1 v2 v3, preferred v1")
	builtin.Set("x.test")
	defined.Set("x.test")
	check("v3 v1, preferred v3")
	extended.Set("x.test")
	check("nothing")
}
