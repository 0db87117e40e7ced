package main

import (
	"testing"
	"time"
)

// A peer that dies keeps its routes for a while, and gets them back at once.
func TestDepartures(t *testing.T) {
	d, at := departures{}, time.Unix(1000, 0)
	for i, step := range []struct {
		alive, had bool
		after      time.Duration
		want       bool
		leaving    int
	}{
		{false, false, 0, false, 0}, // was never met
		{true, false, 0, true, 0},
		{true, true, 0, true, 0},
		{false, true, 0, true, 1},
		{false, true, routeLinger - 1, true, 1},
		{true, true, 0, true, 0}, // it was a mistake
		{false, true, time.Hour, true, 1},
		{false, true, routeLinger, false, 0},
		{false, false, time.Hour, false, 0},
		{true, false, 0, true, 0},
	} {
		at = at.Add(step.after)
		if got := d.routed("h2", step.alive, step.had, at); got != step.want || len(d) != step.leaving {
			t.Errorf("step %d: routes: %v, want %v; %v are leaving", i, got, step.want, d)
		}
	}
}
