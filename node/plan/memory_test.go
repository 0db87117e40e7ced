package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A container that runs for a while each time: how long it is held back then.
func TestBackoff(t *testing.T) {
	m := NewMemory()
	m.Restarted(0, nil)
	now := time.Unix(1000, 0)
	for i, tt := range []struct{ runs, held time.Duration }{
		{time.Second, 0},
		{time.Second, 10 * time.Second},
		{time.Second, 20 * time.Second},
		{time.Second, 40 * time.Second},
		{time.Second, 80 * time.Second},
		{time.Second, 160 * time.Second},
		{time.Second, 5 * time.Minute},
		{time.Second, 5 * time.Minute},
		{11 * time.Minute, 0}, // forgotten
		{time.Second, 10 * time.Second},
	} {
		now = now.Add(tt.runs)
		end := &v1.ContainerStateTerminated{ExitCode: 1, FinishedAt: metav1.NewTime(now)}
		due := m.Due(end)
		if held := due.Sub(now); held != tt.held {
			t.Errorf("crash %d: held back %s, want %s", i+1, held, tt.held)
		}
		now = due
		m.Restarted(i+1, end)
		if m.Attempt != i+1 || m.Last != end {
			t.Errorf("crash %d: attempt %d", i+1, m.Attempt)
		}
	}
}

func TestSecondDeleteShortens(t *testing.T) {
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "web"}}}}
	now := time.Unix(1000, 0)
	in := Input{
		Pod: pod, Now: now, Memory: map[string]*Memory{"web": NewMemory()},
		Halt: Halt{Since: now.Add(-5 * time.Second), Grace: 30 * time.Second, Remove: true},
		Busy: map[string]Task{"web": {Kind: Stop, Grace: 30 * time.Second, Since: now.Add(-5 * time.Second)}},
	}
	if r := Next(in); len(r.Actions) != 0 {
		t.Errorf("the same grace: %+v", r.Actions)
	}
	in.Halt.Grace = 10 * time.Second
	if r := Next(in); len(r.Actions) != 1 || r.Actions[0].Kind != CancelStop {
		t.Errorf("a shorter grace: %+v", r.Actions)
	}
}
