package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
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
		due := m.Due(end, now)
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

// A clock that is set back by an hour during a backoff does not make it longer.
func TestClockSetBackDuringBackoff(t *testing.T) {
	ended := time.Unix(100_000, 0)
	pod := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{Name: "web"}}}}
	m := &Memory{Attempt: 3, Backoff: 40 * time.Second, At: ended.Add(-time.Minute), Ended: &v1.ContainerStateTerminated{ExitCode: 1, FinishedAt: metav1.NewTime(ended)}}
	in := Input{Pod: pod, Memory: map[string]*Memory{"web": m}, VolumesReady: true, Attached: true, Sandbox: &runtime.Sandbox{Running: true}}
	for _, tt := range []struct {
		now    time.Duration // after the end
		starts bool
	}{{-time.Second, false}, {30 * time.Second, false}, {40 * time.Second, true}, {10*time.Second - time.Hour, true}, {time.Hour, true}} {
		in.Now = ended.Add(tt.now)
		r := Next(in)
		if starts := len(r.Actions) == 1 && r.Actions[0].Kind == Start; starts != tt.starts {
			t.Errorf("%s after the end: %+v", tt.now, r)
		}
		if !tt.starts && r.Wake.Sub(in.Now) > m.Backoff+clockSlack {
			t.Errorf("%s after the end: wakes after %s", tt.now, r.Wake.Sub(in.Now))
		}
	}
}

// The same where the end of a container starts its whole pod over.
func TestClockSetBackBeforeReset(t *testing.T) {
	ended, always := time.Unix(100_000, 0), v1.ContainerRestartPolicyAlways
	pod := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{
		Name: "web", RestartPolicy: &always,
		RestartPolicyRules: []v1.ContainerRestartRule{{
			Action:    v1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{1}},
		}},
	}}}}
	in := Input{
		Pod: pod, VolumesReady: true, Attached: true, Sandbox: &runtime.Sandbox{Running: true},
		Memory: map[string]*Memory{"web": {Attempt: 3, Backoff: 40 * time.Second, At: ended.Add(-time.Minute), Ended: &v1.ContainerStateTerminated{ExitCode: 1, FinishedAt: metav1.NewTime(ended)}}},
	}
	for _, tt := range []struct {
		now    time.Duration // after the end
		resets bool
	}{{30 * time.Second, false}, {40 * time.Second, true}, {10*time.Second - 2*time.Hour, true}} {
		in.Now = ended.Add(tt.now)
		if r := Next(in); (len(r.Actions) == 1 && r.Actions[0].Kind == RemoveSandbox) != tt.resets {
			t.Errorf("%s after the end: %+v", tt.now, r)
		}
	}
}

// After a reboot Podman calls a container created that was started before: it has
// ended, and a pod that is not restarted has failed.
func TestRebootEndsWhatRan(t *testing.T) {
	now := time.Unix(100_000, 0)
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "web"}, {Name: "never"}}}}
	container := func(name string, started time.Time) runtime.Container {
		return runtime.Container{Name: name, State: runtime.Created, Started: started, Labels: map[string]string{spec.LabelContainer: name, spec.LabelAttempt: "0"}}
	}
	memory := map[string]*Memory{"web": {Attempt: 0}, "never": {Attempt: 0}}
	old := &runtime.Sandbox{Containers: []runtime.Container{container("web", now.Add(-time.Hour)), container("never", time.Time{})}}
	SandboxReplaced(pod, memory, old, now, nil)
	if end := memory["web"].Ended; end == nil || end.ExitCode == 0 || memory["web"].Fresh {
		t.Errorf("the one that ran: %+v", memory["web"])
	}
	if memory["never"].Ended != nil || !memory["never"].Fresh {
		t.Errorf("the one that was never started: %+v", memory["never"])
	}
}

// A container that ran when the machine began to stop counts as killed, also where the
// power went before more was noted; one that went on running counts as it ends.
func TestInterrupted(t *testing.T) {
	pod := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyOnFailure, Containers: []v1.Container{{Name: "web"}}}}
	c := runtime.Container{State: runtime.Running, Labels: map[string]string{spec.LabelContainer: "web", spec.LabelAttempt: "0", spec.LabelHash: spec.Hash(&pod.Spec.Containers[0])}}
	now := time.Unix(100_000, 0)
	for _, calledOff := range []bool{false, true} {
		running := &runtime.Sandbox{Running: true, Containers: []runtime.Container{c}}
		in := Input{Pod: pod, Now: now, Halt: Halt{Since: now, Resumes: true}, Sandbox: running, VolumesReady: true, Attached: true, Memory: map[string]*Memory{"web": {}}}
		Observe(in, nil)
		if r := Next(in); len(r.Actions) != 1 || r.Actions[0].Kind != Stop {
			t.Fatalf("%+v", r)
		}
		in.Halt = Halt{}
		if calledOff {
			Observe(in, nil)
		}
		exited := c
		exited.State, exited.Finished = runtime.Exited, now // with 0
		in.Sandbox = &runtime.Sandbox{Running: true, Containers: []runtime.Container{exited}}
		Observe(in, nil)
		if r := Next(in); r.Finished != calledOff {
			t.Errorf("called off %t: %+v", calledOff, r)
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
