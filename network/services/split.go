package services

import (
	"cmp"
	"maps"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Split divides the new connections of a Service between groups of its endpoints, as for
// a release that gets 5 % of the traffic. Within a group each endpoint is as likely as the
// others. It must not be changed once it has been handed over.
type Split struct {
	// Weights are the shares by group, relative to each other, in hundredths of the whole
	// at the finest. Zero and a group that is not named here get nothing. The share
	// of a group that has no endpoint which can answer goes to the others.
	Weights map[string]int
	// Group names the group that an endpoint belongs to. It must not block.
	Group func(discoveryv1.Endpoint) string
}

// slots is how many new connections in a row have the shares exactly.
const slots = 100

// turns says which group gets which of the next connections, for groups with a weight above
// zero: each as often as its share says, and evenly spread, so that a short burst has them
// about right as well.
func turns(weights map[string]int) []string {
	names := slices.Sorted(maps.Keys(weights))
	share := shares(names, weights)
	credit := make([]int, len(names))
	out := make([]string, slots)
	for turn := range out {
		best := 0
		for i := range names {
			if credit[i] += share[i]; credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= slots
		out[turn] = names[best]
	}
	return out
}

// shares are the weights as parts of slots; what rounding leaves goes to those that lost
// most by it. A weight above zero is never rounded to nothing.
func shares(names []string, weights map[string]int) []int {
	total := 0
	for _, n := range names {
		total += weights[n]
	}
	out, left := make([]int, len(names)), slots
	order := make([]int, len(names))
	for i, n := range names {
		out[i] = max(1, weights[n]*slots/total)
		left -= out[i]
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		lost := func(i int) int { return weights[names[i]]*slots - out[i]*total }
		return cmp.Or(cmp.Compare(lost(b), lost(a)), cmp.Compare(a, b))
	})
	for i := 0; left > 0; i, left = (i+1)%len(order), left-1 {
		out[order[i]]++
	}
	for i := len(order) - 1; left < 0; i = (i + len(order) - 1) % len(order) {
		if out[order[i]] > 1 { // more than slots groups never come here: see balance
			out[order[i]]--
			left++
		}
	}
	return out
}
