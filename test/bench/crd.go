package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	definitions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// crdTimes are seconds from the creation of a definition.
type crdTimes struct{ Established, Object float64 }

// measureCRD is what the first CustomResourceDefinition with one object costs: memory that
// is not backed by a file, as a mean over the peers, and time.
func measureCRD(ctx context.Context, b *bench) ([]figure, error) {
	before, err := b.anonymous(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := b.lab.Run(ctx, "client", self, "crd-client", "-kubeconfig", b.lab.HostDir("client")+"/admin.kubeconfig")
	if err != nil {
		return nil, err
	}
	var took crdTimes
	if err := json.Unmarshal([]byte(out), &took); err != nil {
		return nil, err
	}
	after, err := b.anonymous(ctx)
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "crd/memory-before", value: before, unit: "MB", yardstick: "-"},
		{name: "crd/memory-after", value: after, unit: "MB", yardstick: "-"},
		{name: "crd/established", value: took.Established * 1000, unit: "ms", yardstick: "-"},
		{name: "crd/first-object", value: took.Object * 1000, unit: "ms", yardstick: "kube-apiserver 2000"},
	}, nil
}

// anonymous is the mean of the daemons' anonymous memory in MB, once they have given back what they do not need.
func (b *bench) anonymous(ctx context.Context) (float64, error) {
	if err := b.settle(ctx, lab.CalmDown); err != nil {
		return 0, err
	}
	pids, err := b.daemons()
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, pid := range pids {
		u, err := lab.UsageOf(pid)
		if err != nil {
			return 0, err
		}
		sum += megabytes(u.Anonymous)
	}
	return sum / float64(len(pids)), nil
}

// crdClient defines a kind and makes an object of it, run inside a host of the lab.
func crdClient(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("crd-client", flag.ContinueOnError)
	path := f.String("kubeconfig", "", "of the cluster")
	if err := f.Parse(args); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", *path)
	if err != nil {
		return err
	}
	kinds, err := definitions.NewForConfig(cfg)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	var took crdTimes
	began := time.Now()
	if err := define(ctx, kinds.CustomResourceDefinitions()); err != nil {
		return err
	}
	took.Established = time.Since(began).Seconds()
	things := objects.Resource(schema.GroupVersionResource{Group: "bench.example.com", Version: "v1", Resource: "things"}).Namespace("default")
	if _, err := things.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "bench.example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": "one"}, "spec": map[string]any{"size": int64(1)},
	}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create object: %w", err)
	}
	took.Object = time.Since(began).Seconds()
	return json.NewEncoder(os.Stdout).Encode(took)
}

// define makes a definition with a schema, a default and a rule, and waits until it is established.
func define(ctx context.Context, kinds definitions.CustomResourceDefinitionInterface) error {
	one := float64(1)
	spec := definitionsv1.JSONSchemaProps{
		Type:         "object",
		Properties:   map[string]definitionsv1.JSONSchemaProps{"size": {Type: "integer", Minimum: &one}, "kind": {Type: "string", Default: &definitionsv1.JSON{Raw: []byte(`"plain"`)}}},
		XValidations: definitionsv1.ValidationRules{{Rule: "self.size < 100"}},
	}
	crd := &definitionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things.bench.example.com"},
		Spec: definitionsv1.CustomResourceDefinitionSpec{
			Group: "bench.example.com", Scope: definitionsv1.NamespaceScoped, Names: definitionsv1.CustomResourceDefinitionNames{Plural: "things", Kind: "Thing"},
			Versions: []definitionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &definitionsv1.CustomResourceValidation{
				OpenAPIV3Schema: &definitionsv1.JSONSchemaProps{Type: "object", Properties: map[string]definitionsv1.JSONSchemaProps{"spec": spec}},
			}}},
		},
	}
	made, err := kinds.Create(ctx, crd, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create definition: %w", err)
	}
	w, err := kinds.Watch(ctx, metav1.ListOptions{ResourceVersion: made.ResourceVersion, FieldSelector: "metadata.name=" + crd.Name})
	if err != nil {
		return fmt.Errorf("watch definition: %w", err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if crd, ok := e.Object.(*definitionsv1.CustomResourceDefinition); ok && apihelpers.IsCRDConditionTrue(crd, definitionsv1.Established) {
			return nil
		}
	}
	return fmt.Errorf("the watch of the definition ended")
}
