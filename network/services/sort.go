package services

import (
	"cmp"
	"slices"
)

// sortByName makes the order of a lister's answer, which is that of a map, not matter.
func sortByName[T interface {
	GetNamespace() string
	GetName() string
}](objects []T) {
	slices.SortFunc(objects, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}
