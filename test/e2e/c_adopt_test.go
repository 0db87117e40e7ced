package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A daemon that comes back at once adopts its pods, their containers untouched,
// and removes those that were deleted meanwhile.
func TestRestartedDaemonAdoptsItsPods(t *testing.T) {
	allReady(t, time.Minute)
	spread(t, "h1")
	victim, other := "h2", "h3"
	containers := func() map[string][]string {
		found := map[string][]string{}
		for _, p := range pods(t, other) {
			if p.Spec.NodeName != victim {
				continue
			}
			for _, c := range p.Status.ContainerStatuses {
				found[p.Metadata.Name] = append(found[p.Metadata.Name], fmt.Sprintf("%s %s %d", c.Name, c.ContainerID, c.RestartCount))
			}
		}
		return found
	}
	before := containers()
	if len(before) < 2 {
		t.Fatalf("%s runs %d pods, this needs two", victim, len(before))
	}
	var deleted string
	for name := range before {
		deleted = name
	}
	if err := shared.Kill(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	sh(t, other, "rookery -n hello delete pod "+deleted+" --wait=false")
	if err := shared.Start(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if all := pods(t, other); slices.ContainsFunc(all, func(p pod) bool { return p.Metadata.Name == deleted }) {
			return fmt.Errorf("%s is still there", deleted)
		}
		return nil
	})
	allReady(t, time.Minute)
	nothingTwice(t, victim)
	after := containers()
	for name, want := range before {
		if name == deleted {
			continue
		}
		if !slices.Equal(after[name], want) {
			t.Errorf("%s: containers were %v, are %v", name, want, after[name])
		}
	}
}
