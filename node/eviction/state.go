package eviction

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Observation is how much there is of a signal's resource, in bytes or pieces.
type Observation struct{ Available, Capacity int64 }

// Observations are those that could be made. What could not be is never short.
type Observations map[Signal]Observation

// State remembers from one observation to the next. The zero value: none was made.
type State struct {
	first map[Threshold]time.Time            // since when it is met
	last  map[v1.NodeConditionType]time.Time // when it was seen last
	met   []Threshold                        // whose grace is over and that are not resolved
}

// Verdict is what follows from an observation.
type Verdict struct {
	// Conditions that the Node has now, sorted.
	Conditions []v1.NodeConditionType
	// Starved are the thresholds that pods have to go for, the most urgent first: memory
	// before everything.
	Starved []Threshold
}

// Observe takes in what was seen.
func (s *State) Observe(thresholds []Threshold, seen Observations, transition time.Duration, now time.Time) Verdict {
	met := Met(thresholds, seen, false)
	for _, t := range Met(s.met, seen, true) {
		if !slices.Contains(met, t) {
			met = append(met, t)
		}
	}
	first := make(map[Threshold]time.Time, len(met))
	for _, t := range met {
		first[t] = now
		if before, ok := s.first[t]; ok {
			first[t] = before
		}
	}
	s.first = first
	if s.last == nil {
		s.last = map[v1.NodeConditionType]time.Time{}
	}
	var out Verdict
	for _, t := range met {
		m, _ := meaningOf(t.Signal)
		s.last[m.condition] = now
		if now.Sub(first[t]) >= t.Grace {
			out.Starved = append(out.Starved, t)
		}
	}
	s.met = slices.Clone(out.Starved)
	for condition, at := range s.last {
		if now.Sub(at) < transition {
			out.Conditions = append(out.Conditions, condition)
		}
	}
	slices.Sort(out.Conditions)
	slices.SortFunc(out.Starved, func(a, b Threshold) int {
		return cmp.Or(urgency(a)-urgency(b), cmp.Compare(a.Grace, b.Grace), cmp.Compare(a.Signal, b.Signal))
	})
	return out
}

func urgency(t Threshold) int {
	if t.Signal == MemoryAvailable {
		return 0
	}
	return 1
}

// Met are those of the thresholds that are met, whatever their grace. reclaimed asks for
// what has to be won beyond them, too.
func Met(thresholds []Threshold, seen Observations, reclaimed bool) []Threshold {
	var out []Threshold
	for _, t := range thresholds {
		o, ok := seen[t.Signal]
		if !ok {
			continue
		}
		least := t.Value.Of(o.Capacity)
		if reclaimed {
			least += t.Reclaim.Of(o.Capacity)
		}
		if o.Available < least {
			out = append(out, t)
		}
	}
	return out
}
