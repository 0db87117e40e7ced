package main

import "testing"

// A run that missed a budget fails, and says which.
func TestMissed(t *testing.T) {
	met := []figure{
		{name: "pods", value: 1.2, unit: "x", budget: 1.25},
		{name: "creates", value: 3000, unit: "1/s", budget: 2151, atLeast: true},
		{name: "for the record", value: 7, unit: "MB"},
	}
	if err := missed(met); err != nil {
		t.Errorf("all are met: %v", err)
	}
	err := missed(append(met, figure{name: "memory", value: 130, unit: "MB", budget: 128}, figure{name: "gets", value: 1, unit: "1/s", budget: 4293, atLeast: true}))
	if want := "2 of 5 figures are over budget: memory is 130.00 MB, not <= 128; gets is 1.00 1/s, not >= 4293"; err == nil || err.Error() != want {
		t.Errorf("have %v, want %s", err, want)
	}
}
