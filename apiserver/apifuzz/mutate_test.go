package apifuzz

import (
	"maps"
	"slices"
	"strings"
)

// place is one spot in a tree of JSON that can be changed.
type place struct {
	parent any // map[string]any or []any
	key    string
	index  int
}

func (p place) get() any {
	if m, ok := p.parent.(map[string]any); ok {
		return m[p.key]
	}
	return p.parent.([]any)[p.index]
}

func (p place) set(v any) {
	if m, ok := p.parent.(map[string]any); ok {
		m[p.key] = v
		return
	}
	p.parent.([]any)[p.index] = v
}

// places lists every spot below a value, in a fixed order.
func places(v any) (all []place) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			all = append(append(all, place{parent: v, key: k}), places(v[k])...)
		}
	case []any:
		for i := range v {
			all = append(append(all, place{parent: v, index: i}), places(v[i])...)
		}
	}
	return all
}

// mutate changes an object in place, in a few spots.
func (d *dice) mutate(object map[string]any) {
	for range d.IntN(4) {
		all := places(object)
		if len(all) == 0 {
			return
		}
		d.change(pick(d, all), all)
	}
}

func (d *dice) change(p place, all []place) {
	switch d.IntN(10) {
	case 0:
		p.set(nil)
	case 1:
		p.set(d.anything(3))
	case 2:
		p.set(d.odd())
	case 3:
		p.set(d.integer())
	case 4:
		if m, ok := p.parent.(map[string]any); ok {
			delete(m, p.key)
		}
	case 5:
		if m, ok := p.parent.(map[string]any); ok {
			m[d.word()] = clone(p.get())
		}
	case 6:
		p.set(clone(pick(d, all).get()))
	case 7: // many times the same
		if list, ok := p.get().([]any); ok && len(list) > 0 {
			for range pick(d, []int{1, 2, 300}) {
				list = append(list, clone(list[0]))
			}
			p.set(list)
		}
	case 8:
		p.set(map[string]any{})
	case 9:
		p.set([]any{clone(p.get())})
	}
}

// clone copies a tree, up to a size, so that changes to one do not show in another.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = clone(e)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = clone(e)
		}
		return list
	}
	return v
}

// garble spoils an encoded body.
func (d *dice) garble(b []byte) []byte {
	b = slices.Clone(b)
	if len(b) == 0 {
		return b
	}
	switch d.IntN(6) {
	case 0: // torn off
		return b[:d.IntN(len(b))]
	case 1: // flipped bits
		for range 1 + d.IntN(8) {
			b[d.IntN(len(b))] ^= 1 << d.IntN(8)
		}
	case 2: // more after the end
		return append(b, pick(d, []string{"{}", "\x00", "}", "\n---\na: b", "]]", strings.Repeat(" ", 1<<20)})...)
	case 3: // a piece twice
		at := d.IntN(len(b))
		return slices.Insert(b, at, b[at/2:at]...)
	case 4: // a key twice
		return []byte(strings.Replace(string(b), `"metadata":`, `"metadata":{"name":"f0","labels":{"a":"b"}},"metadata":`, 1))
	case 5: // a number out of all ranges
		return []byte(strings.Replace(string(b), `:1`, `:`+strings.Repeat("9", 400), 1))
	}
	return b
}

// deep is nesting that nobody writes by hand.
func (d *dice) deep() []byte {
	n := pick(d, []int{100, 9_000, 10_001, 100_000, 700_000})
	open, middle, end := "[", "1", "]"
	switch d.IntN(4) {
	case 0:
		open, end = `{"a":`, "}"
	case 1: // within an object of the API
		open, end = `{"f:a":`, "}"
		return []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"f0","managedFields":[{"manager":"m","operation":"Apply","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":` +
			strings.Repeat(open, n/4) + "{}" + strings.Repeat(end, n/4) + `}]}}`)
	case 2:
		return []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"f0"},"spec":` + strings.Repeat(`{"containers":[`, n/16) + middle + strings.Repeat("]}", n/16) + `}`)
	}
	return []byte(strings.Repeat(open, n) + middle + strings.Repeat(end, n))
}
