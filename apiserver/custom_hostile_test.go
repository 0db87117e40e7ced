package apiserver_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// What would cost the peer too much is refused, and the peer lives on.
func TestHostileDefinitions(t *testing.T) {
	c := startLeader(t)
	schema := func(s string) string {
		return `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"evils.example.com"},"spec":{"group":"example.com","scope":"Namespaced",` +
			`"names":{"plural":"evils","kind":"Evil"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":` + s + `}}]}}`
	}
	nested := func(depth int) string {
		return strings.Repeat(`{"type":"object","properties":{"a":`, depth) + `{"type":"string"}` + strings.Repeat(`}}`, depth)
	}
	rule := func(of, rule string) string {
		return `{"type":"object","properties":{"spec":` + of + `},"x-kubernetes-validations":[{"rule":"` + rule + `"}]}`
	}
	cubes := `{"type":"array","items":{"type":"array","items":{"type":"array","items":{"type":"string"}}}}`
	for name, test := range map[string]struct {
		body string
		code int
		text string
	}{
		"huge":                 {schema(`{"type":"object","description":"` + strings.Repeat("x", 4<<20) + `"}`), http.StatusRequestEntityTooLarge, "limit"},
		"nested too deep":      {schema(nested(20000)), http.StatusBadRequest, "depth"},
		"expensive rule":       {schema(rule(cubes, "self.spec.all(x, x.all(y, y.all(z, z.matches('a.*b'))))")), http.StatusUnprocessableEntity, "cost"},
		"rule of a wrong type": {schema(rule(`{"type":"integer"}`, "self.spec.size() > 1")), http.StatusUnprocessableEntity, "compilation failed"},
		"rule without end":     {schema(rule(`{"type":"integer"}`, strings.Repeat("(", 5000)+"true"+strings.Repeat(")", 5000))), http.StatusUnprocessableEntity, "compilation failed"},
		"not structural":       {schema(`{"type":"object","properties":{"a":{}}}`), http.StatusUnprocessableEntity, "must not be empty"},
		"bad pattern":          {schema(`{"type":"object","properties":{"a":{"type":"string","pattern":"("}}}`), http.StatusUnprocessableEntity, "pattern"},
	} {
		began := time.Now()
		a := c.do(t, "POST", definitionsPath, test.body, "Content-Type: application/json")
		if a.code != test.code || !strings.Contains(string(a.body), test.text) {
			t.Errorf("%s: %d %.300s", name, a.code, a.body)
		}
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("%s: refused after %v", name, d)
		}
	}
	// As deep as one may be, it is served like any other, and cannot be made deeper.
	if a := c.do(t, "POST", definitionsPath, schema(nested(250)), "Content-Type: application/json"); a.code != http.StatusCreated {
		t.Fatalf("deep: %d %.300s", a.code, a.body)
	}
	c.awaitCondition(t, "evils.example.com", definitionsv1.Established)
	if a := c.do(t, "GET", "/apis/example.com/v1/evils", ""); a.code != http.StatusOK {
		t.Errorf("objects of a deep schema: %d %.300s", a.code, a.body)
	}
	evil, err := c.definitions.Get(t.Context(), "evils.example.com", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	evil.Spec.Versions[0].Schema.OpenAPIV3Schema = lists(400)
	if _, err := c.definitions.Update(t.Context(), evil, metav1.UpdateOptions{}); !apierrors.IsBadRequest(err) {
		t.Errorf("deepened: %.300v", err)
	}
	// Protobuf has no limit of its own.
	crd := &definitionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal([]byte(aDefinition("worses", "example.com", "Worse")), crd); err != nil {
		t.Fatal(err)
	}
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema = lists(5_000)
	if _, err := c.definitions.Create(t.Context(), crd, metav1.CreateOptions{}); !apierrors.IsBadRequest(err) {
		t.Errorf("deep protobuf: %.300v", err)
	}
	// An object that takes long to check is refused by the budget of its rules.
	c.define(t, strings.ReplaceAll(widgets, "rule: 'self.replicas <= self.most'", `rule: 'self.note.split("").all(a, self.note.split("").all(b, a == b || a != b))'`))
	_, err = c.widgets("v1").Create(t.Context(), aWidget(t, "slow", "{size: big, note: "+strings.Repeat("x", 100)+"}"), metav1.CreateOptions{})
	if err != nil && !apierrors.IsInvalid(err) {
		t.Errorf("an object with a costly rule: %v", err)
	}
	if err := c.Ready(); err != nil {
		t.Error(err)
	}
}

// lists is a list of lists of lists, and so on.
func lists(depth int) *definitionsv1.JSONSchemaProps {
	s := &definitionsv1.JSONSchemaProps{Type: "string"}
	for range depth {
		s = &definitionsv1.JSONSchemaProps{Type: "array", Items: &definitionsv1.JSONSchemaPropsOrArray{Schema: s}}
	}
	return s
}

// A definition cannot get hold of built-in objects, which are deleted with it otherwise.
func TestDefinitionOfABuiltInKind(t *testing.T) {
	c := startLeader(t)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "precious"}}
	if _, err := c.admin.CoordinationV1().Leases("default").Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const path = "/apis/coordination.k8s.io"
	before := c.do(t, "GET", path+"/v1", "").body
	manifest := strings.Replace(aDefinition("leases", "coordination.k8s.io", "Lease"), "metadata: {", "metadata: {annotations: {api-approved.kubernetes.io: unapproved}, ", 1)
	crd := c.define(t, strings.Replace(manifest, "name: v1,", "name: v9,", 1))
	if after := c.do(t, "GET", path+"/v1", "").body; string(after) != string(before) {
		t.Errorf("discovery of the built-in group: %s", after)
	}
	if a := c.do(t, "GET", path+"/v9/leases", ""); a.code != http.StatusNotFound {
		t.Errorf("a version added to a built-in group: %d", a.code)
	}
	for _, accept := range []string{"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "application/json"} {
		if raw := string(c.do(t, "GET", "/apis", "", "Accept: "+accept).body); strings.Contains(raw, "v9") {
			t.Errorf("groups: %.500s", raw)
		}
	}
	if err := c.definitions.Delete(t.Context(), crd.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition is gone", func() bool {
		_, err := c.definitions.Get(t.Context(), crd.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if _, err := c.admin.CoordinationV1().Leases("default").Get(t.Context(), "precious", metav1.GetOptions{}); err != nil {
		t.Errorf("a built-in object after that: %v", err)
	}
}
