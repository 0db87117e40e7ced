package apifuzz

import (
	"bytes"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	cbor "k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// fill gives a request its body and says what it is.
func (g *generator) fill(d *dice, c *call, verb string, e endpoint, namespace, name string) {
	switch verb {
	case "create", "update":
		object := g.object(d, e, namespace, name)
		c.body = g.encoded(d, c, object)
	case "patch":
		g.patch(d, c, e, namespace, name)
	case "delete", "deletecollection":
		if d.oneIn(2) {
			options := d.object(g.schemas.named("DeleteOptions"))
			options["apiVersion"], options["kind"] = "v1", "DeleteOptions"
			c.body = g.encoded(d, c, options)
		}
	default:
		if d.oneIn(20) {
			c.header.Set("Content-Type", asJSON)
			c.body = encode(d.anything(3))
		}
	}
	d.spoil(c)
}

// spoil breaks one body in eight.
func (d *dice) spoil(c *call) {
	if c.body == nil || !d.oneIn(8) {
		return
	}
	switch n := d.IntN(10); {
	case n < 6:
		c.body = d.garble(c.body)
	case n < 8:
		c.body = d.deep()
	case n < 9:
		c.body = bytes.Repeat([]byte(pick(d, []string{"a", "[", `{"a":1,`, "\x00", "- ", `"`, "&a "})), pick(d, []int{1, 3000, 3<<20 + 1, 4 << 20}))
	default:
		c.header.Set("Content-Type", pick(d, []string{"text/plain", "application/json; charset=latin-1", "application/xml", ";;", strategic, asProtobuf, asCBOR, applyYAML, "multipart/form-data; boundary=x", ""}))
	}
}

// named finds a schema by a kind's name alone.
func (s schemas) named(kind string) ofKind {
	for _, group := range []string{"", "apps", "batch"} {
		if k, ok := s[schema.GroupVersionKind{Group: group, Version: "v1", Kind: kind}]; ok {
			return k
		}
	}
	return ofKind{}
}

// object makes what the endpoint takes, or nearly.
func (g *generator) object(d *dice, e endpoint, namespace, name string) map[string]any {
	kind := e.kind
	if d.oneIn(30) {
		kind = pick(d, g.kinds)
	}
	object := g.sample(d, kind)
	switch {
	case object == nil || d.oneIn(4):
		object = d.object(g.schemas[kind])
	case d.oneIn(4): // a part of it made anew
		if made := d.object(g.schemas[kind]); made["spec"] != nil {
			object[pick(d, []string{"spec", "status"})] = made["spec"]
		}
	}
	object["apiVersion"], object["kind"] = kind.GroupVersion().String(), kind.Kind
	meta, ok := object["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		object["metadata"] = meta
	}
	switch {
	case name != "":
		meta["name"] = name
	case d.oneIn(8):
		delete(meta, "name")
		meta["generateName"] = pick(d, []string{"f", "g-", "", "UP", strings.Repeat("g", 300)})
	case meta["name"] == nil || !strings.Contains(e.kind.Group, ".") && e.kind.Kind != "CustomResourceDefinition":
		meta["name"] = d.name()
	}
	if e.namespaced {
		meta["namespace"] = namespace
	} else {
		delete(meta, "namespace")
	}
	if d.oneIn(2) {
		d.mutate(object)
	}
	return object
}

// encoded writes an object in one of the forms and sets the content type.
func (g *generator) encoded(d *dice, c *call, object map[string]any) []byte {
	switch d.IntN(8) {
	case 0:
		if b, err := yaml.Marshal(object); err == nil {
			c.header.Set("Content-Type", asYAML)
			return b
		}
	case 1:
		c.header.Set("Content-Type", asCBOR)
		if b, err := cbor.Marshal(object); err == nil {
			return append([]byte{0xd9, 0xd9, 0xf7}, b...)
		}
	case 2, 3:
		if b := inProtobuf(object); b != nil {
			c.header.Set("Content-Type", asProtobuf)
			return b
		}
	}
	c.header.Set("Content-Type", asJSON)
	return encode(object)
}

// inProtobuf returns nil for what no built-in kind can hold.
func inProtobuf(object map[string]any) []byte {
	gvk := (&unstructured.Unstructured{Object: object}).GroupVersionKind()
	typed, err := scheme.Scheme.New(gvk)
	if err != nil || runtime.DefaultUnstructuredConverter.FromUnstructured(object, typed) != nil {
		return nil
	}
	typed.GetObjectKind().SetGroupVersionKind(gvk)
	var out bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(typed, &out); err != nil {
		return nil
	}
	return out.Bytes()
}
