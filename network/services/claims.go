package services

import (
	"slices"
	"strings"
)

// claims are what Services ask for under keys that only one can have, as the address and port
// where clients connect to: the first by name has it.
type claims[K comparable, V any] map[K][]claim[V]

type claim[V any] struct {
	by    string
	value V
}

// changes are new values by their keys; nil: there is none any more.
type changes[K comparable, V any] map[K]*V

// replace makes is what a Service asks for, instead of was. It notes in out what the keys of
// both have come to, and returns those of is.
func (c claims[K, V]) replace(by string, was []K, is map[K]V, out changes[K, V]) []K {
	for _, key := range was {
		c[key] = slices.DeleteFunc(c[key], func(o claim[V]) bool { return o.by == by })
		c.note(key, out)
	}
	if len(is) == 0 {
		return nil
	}
	keys := make([]K, 0, len(is))
	for key, value := range is {
		i, _ := slices.BinarySearchFunc(c[key], by, func(o claim[V], by string) int { return strings.Compare(o.by, by) })
		c[key] = slices.Insert(c[key], i, claim[V]{by, value})
		c.note(key, out)
		keys = append(keys, key)
	}
	return keys
}

func (c claims[K, V]) note(key K, out changes[K, V]) {
	if len(c[key]) == 0 {
		delete(c, key)
		out[key] = nil
		return
	}
	first := c[key][0].value
	out[key] = &first
}

// since names also what was there and is no more, for changes that begin with nothing.
func (c changes[K, V]) since(was map[K]V) {
	for key := range was {
		if _, ok := c[key]; !ok {
			c[key] = nil
		}
	}
}

// apply changes to, and returns what it had of that before.
func (c changes[K, V]) apply(to map[K]V) (was map[K]V) {
	was = map[K]V{}
	for key, value := range c {
		if old, ok := to[key]; ok {
			was[key] = old
		}
		if value == nil {
			delete(to, key)
		} else {
			to[key] = *value
		}
	}
	return was
}
