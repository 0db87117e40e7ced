package apiserver_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	definitions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	clientrest "k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// custom is a peer with clients for definitions and their objects.
type custom struct {
	*peer
	definitions definitions.CustomResourceDefinitionInterface
	objects     dynamic.Interface
	http        *http.Client
}

// startCustom starts a peer that follows: nothing here writes the status of definitions.
func startCustom(t *testing.T, store raftstore.Store, change ...func(*apiserver.Config)) *custom {
	t.Helper()
	p := start(t, store, change...)
	cfg := p.ClientConfig("admin", "system:masters")
	c := &custom{peer: p}
	var err error
	if c.objects, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if c.http, err = clientrest.HTTPClientFor(cfg); err != nil {
		t.Fatal(err)
	}
	typed, err := definitions.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.definitions = typed.CustomResourceDefinitions()
	return c
}

// lead runs the controllers of definitions until the test or the returned function ends them.
func (c *custom) lead(t *testing.T) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.RunDefinitions(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run definitions: %v", err)
		}
	}
	t.Cleanup(end)
	return end
}

func startLeader(t *testing.T) *custom {
	t.Helper()
	c := startCustom(t, raftstore.NewMemory())
	c.lead(t)
	return c
}

// define creates a definition and waits until it is established.
func (c *custom) define(t *testing.T, manifest string) *definitionsv1.CustomResourceDefinition {
	t.Helper()
	crd := c.mustCreate(t, manifest)
	c.awaitCondition(t, crd.Name, definitionsv1.Established)
	return crd
}

func (c *custom) create(t *testing.T, manifest string) (*definitionsv1.CustomResourceDefinition, error) {
	t.Helper()
	crd := &definitionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(manifest), crd); err != nil {
		t.Fatal(err)
	}
	return c.definitions.Create(t.Context(), crd, metav1.CreateOptions{})
}

func (c *custom) mustCreate(t *testing.T, manifest string) *definitionsv1.CustomResourceDefinition {
	t.Helper()
	crd, err := c.create(t, manifest)
	if err != nil {
		t.Fatal(err)
	}
	return crd
}

func (c *custom) awaitCondition(t *testing.T, name string, kind definitionsv1.CustomResourceDefinitionConditionType) {
	t.Helper()
	eventually(t, name+" is "+string(kind), func() bool {
		crd, err := c.definitions.Get(t.Context(), name, metav1.GetOptions{})
		return err == nil && apihelpers.IsCRDConditionTrue(crd, kind)
	})
}

// change updates a definition, again if somebody else was first.
func (c *custom) change(t *testing.T, name string, change func(*definitionsv1.CustomResourceDefinition)) {
	t.Helper()
	eventually(t, name+" is changed", func() bool {
		crd, err := c.definitions.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(crd)
		_, err = c.definitions.Update(t.Context(), crd, metav1.UpdateOptions{})
		return err == nil
	})
}

func (c *custom) widgets(version string) dynamic.ResourceInterface {
	return c.objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "widgets"}).Namespace("default")
}

// parse reads an object from its manifest.
func parse(t *testing.T, manifest string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// aWidget has the given spec, in flow style.
func aWidget(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	return parse(t, "{apiVersion: example.com/v1, kind: Widget, metadata: {name: "+name+"}, spec: "+spec+"}")
}

// answered is the answer to a plain request.
type answered struct {
	code   int
	header http.Header
	body   []byte
}

func (a answered) json(t *testing.T) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(a.body, &out); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return out
}

// do sends a request; headers are "Name: value".
func (c *custom) do(t *testing.T, method, path, body string, headers ...string) answered {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://apiserver.rookery.internal"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	res, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{res.StatusCode, res.Header, raw}
}

// soon fails the test if what began took longer than upstream's fixed waits.
func soon(t *testing.T, what string, began time.Time) {
	t.Helper()
	d := time.Since(began)
	t.Logf("%s took %v", what, d)
	if d > 4500*time.Millisecond {
		t.Errorf("%s took %v", what, d)
	}
}

// widgets is a definition with nearly everything that one can have.
const widgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    additionalPrinterColumns:
    - {name: Size, type: string, jsonPath: .spec.size}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    selectableFields:
    - {jsonPath: .spec.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            x-kubernetes-validations:
            - {rule: 'self.replicas <= self.most', message: more replicas than allowed}
            properties:
              size: {type: string, enum: [small, big], description: How big it is.}
              replicas: {type: integer, minimum: 0, default: 1}
              most: {type: integer, default: 5}
              note: {type: string, maxLength: 100}
              parts:
                type: array
                maxItems: 10
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string, maxLength: 20}, weight: {type: integer}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties: {replicas: {type: integer}, selector: {type: string}, phase: {type: string}}
`
