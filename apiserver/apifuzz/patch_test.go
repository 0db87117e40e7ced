package apifuzz

import (
	"bytes"
	"strings"

	"sigs.k8s.io/yaml"
)

// patch makes a patch of one of the five forms.
func (g *generator) patch(d *dice, c *call, e endpoint, namespace, name string) {
	object := g.object(d, e, namespace, name)
	form := pick(d, []string{jsonPatch, mergePatch, strategic, applyYAML, applyYAML, applyYAML, applyCBOR})
	c.header.Set("Content-Type", form)
	switch form {
	case jsonPatch:
		c.body = encode(d.operations(object))
	case mergePatch:
		c.body = encode(d.part(object))
	case strategic:
		part := d.part(object)
		d.directives(part)
		c.body = encode(part)
	default:
		if !d.oneIn(4) && !strings.Contains(c.target, "fieldManager=") {
			c.target = with(c.target, "fieldManager=fuzz"+pick(d, []string{"", "2", "&force=true", "&force=true"}))
		}
		c.body = d.apply(object)
	}
}

func with(target, query string) string {
	if strings.Contains(target, "?") {
		return target + "&" + query
	}
	return target + "?" + query
}

// apply writes what is applied, with a history of its own making now and then.
func (d *dice) apply(object map[string]any) []byte {
	if meta, ok := object["metadata"].(map[string]any); ok && d.oneIn(10) {
		meta["managedFields"] = []any{map[string]any{"manager": "fuzz", "operation": "Apply", "apiVersion": object["apiVersion"], "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": pick(d, []any{map[string]any{"f:data": map[string]any{"f:k": map[string]any{}}}, map[string]any{"k:{\"name\":": map[string]any{}}, map[string]any{"i:-1": map[string]any{}, "v:x": 1}, nil, "x"})}}
	}
	b, err := yaml.Marshal(object)
	if err != nil || d.oneIn(2) {
		return encode(object)
	}
	switch d.IntN(25) {
	case 0: // aliases that multiply
		bomb := "x0: &x0 [a,a,a,a,a,a,a,a,a]\n"
		for i := range 9 {
			bomb += strings.NewReplacer("A", string(rune('0'+i)), "B", string(rune('1'+i))).Replace("xB: &xB [*xA,*xA,*xA,*xA,*xA,*xA,*xA,*xA,*xA]\n")
		}
		return append(b, bomb...)
	case 1: // an alias of itself
		return append(b, "self: &s {s: *s}\n"...)
	case 2:
		return append(b, "<<: {data: {a: b}}\n? [complex, key]\n: 1\n0x10: !!binary x\n"...)
	case 3:
		return append(b, bytes.Repeat([]byte("["), pick(d, []int{5000, 20000}))...)
	case 4:
		return append(b, "---\n"+string(b)...)
	}
	return b
}

// part keeps some of an object.
func (d *dice) part(object map[string]any) map[string]any {
	if d.oneIn(3) {
		return object
	}
	small := map[string]any{}
	for _, key := range []string{"metadata", "spec", "status", "data", "rules", "subjects", "webhooks", "template"} {
		if v, ok := object[key]; ok && d.oneIn(2) {
			small[key] = v
		}
	}
	return small
}

// directives puts strategic merge's own keys into a patch.
func (d *dice) directives(patch map[string]any) {
	maps := []map[string]any{patch}
	for _, p := range places(patch) {
		if m, ok := p.get().(map[string]any); ok {
			maps = append(maps, m)
		}
	}
	for range d.IntN(4) {
		m := pick(d, maps)
		field := pick(d, []string{"containers", "volumes", "env", "ports", "finalizers", "conditions", "tolerations", "ownerReferences", "rules", "nope"})
		switch d.IntN(5) {
		case 0:
			m["$patch"] = pick(d, []any{"delete", "replace", "merge", "x", 1, nil, []any{}})
		case 1:
			m["$deleteFromPrimitiveList/"+field] = pick(d, []any{[]any{"a", "example.com/hold"}, []any{1, nil}, "x", nil, map[string]any{}})
		case 2:
			m["$setElementOrder/"+field] = pick(d, []any{[]any{map[string]any{"name": "main"}}, []any{"a", "b"}, []any{nil}, "x", nil, []any{map[string]any{}, 1}})
		case 3:
			m["$retainKeys"] = pick(d, []any{[]any{"name", "type"}, []any{1}, "x", nil})
		case 4:
			m[field] = pick(d, []any{[]any{map[string]any{"$patch": "delete", "name": "main"}}, []any{map[string]any{"$patch": "replace"}}, []any{nil}, []any{map[string]any{"name": nil}}, []any{[]any{}}, []any{1, map[string]any{}}, map[string]any{}, "x", nil})
		}
	}
}

// operations makes a JSON patch (RFC 6902).
func (d *dice) operations(object map[string]any) []any {
	paths := []string{"", "/", "/metadata", "/metadata/labels/a~1b", "/metadata/annotations/~", "/spec/replicas", "/spec/template/spec/containers/0", "/spec/template/spec/containers/-", "/spec/containers/-1", "/spec/containers/99999999999999999999", "/metadata/name", "/metadata/resourceVersion", "/metadata/managedFields", "/kind", "/data/k", "/status", "/a/b/c/d", strings.Repeat("/a", 3000), "no slash", "/metadata/uid"}
	for _, key := range []string{"spec", "data"} {
		if m, ok := object[key].(map[string]any); ok && len(m) > 0 {
			paths = append(paths, "/"+key)
		}
	}
	ops := []any{}
	for range 1 + d.IntN(4) {
		op := map[string]any{"op": pick(d, []string{"add", "add", "replace", "remove", "copy", "move", "test", "x"}), "path": pick(d, paths)}
		if d.oneIn(2) {
			op["from"] = pick(d, paths)
		}
		if !d.oneIn(3) {
			op["value"] = d.anything(3)
		}
		ops = append(ops, op)
	}
	switch d.IntN(25) {
	case 0: // grows twofold with each step
		for range 40 {
			ops = append(ops, map[string]any{"op": "copy", "from": "/metadata", "path": "/metadata/labels"})
		}
	case 1:
		for range 20_000 {
			ops = append(ops, map[string]any{"op": "add", "path": "/metadata/labels", "value": map[string]any{}})
		}
	case 2:
		ops = append(ops, nil, 1, "x", []any{})
	}
	return ops
}
