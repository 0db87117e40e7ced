package apifuzz

import (
	"maps"
	"slices"
	"strings"
)

// object makes an object of a kind by its schema, or by guesswork if there is none.
func (d *dice) object(kind ofKind) map[string]any {
	if kind.schema == nil {
		return map[string]any{"spec": d.anything(3), "status": d.anything(2), "data": d.anything(2)}
	}
	made, ok := d.of(kind.schema, kind.components, "", 0).(map[string]any)
	if !ok {
		return map[string]any{}
	}
	return made
}

// maxDepth bounds what is made of schemas that contain themselves.
const maxDepth = 9

// of makes a value that fits a schema, mostly.
func (d *dice) of(s, components map[string]any, field string, depth int) any {
	if depth > maxDepth || d.oneIn(60) {
		return d.anything(2)
	}
	if ref, ok := s["$ref"].(string); ok {
		s, _ = components[strings.TrimPrefix(ref, "#/components/schemas/")].(map[string]any)
		return d.of(s, components, field, depth+1)
	}
	for _, key := range []string{"allOf", "oneOf", "anyOf"} {
		if list, ok := s[key].([]any); ok && len(list) > 0 {
			one, _ := pick(d, list).(map[string]any)
			if typ, said := s["type"]; said && one["type"] == nil && one["$ref"] == nil {
				one = map[string]any{"type": typ, "format": s["format"]}
			}
			return d.of(one, components, field, depth+1)
		}
	}
	if values, ok := s["enum"].([]any); ok && len(values) > 0 && !d.oneIn(10) {
		return pick(d, values)
	}
	switch s["type"] {
	case "object":
		return d.fields(s, components, depth)
	case "array":
		items, _ := s["items"].(map[string]any)
		list := []any{}
		for range d.IntN(3) {
			list = append(list, d.of(items, components, field, depth+1))
		}
		return list
	case "integer":
		return d.integer()
	case "number":
		return d.Float64() * 1000
	case "boolean":
		return d.oneIn(2)
	}
	format, _ := s["format"].(string)
	return d.text(field, format)
}

func (d *dice) fields(s, components map[string]any, depth int) map[string]any {
	made := map[string]any{}
	if of, ok := s["additionalProperties"].(map[string]any); ok {
		for range d.IntN(3) {
			made[d.word()] = d.of(of, components, "", depth+1)
		}
	}
	required, _ := s["required"].([]any)
	properties, _ := s["properties"].(map[string]any)
	// Fewer the deeper, or objects would not end.
	share := 2 + depth
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		property, _ := properties[name].(map[string]any)
		if (slices.Contains(required, any(name)) && !d.oneIn(30)) || d.oneIn(share) {
			made[name] = d.of(property, components, name, depth+1)
		}
	}
	return made
}
