package status

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// Twelve KiB for a pod, each container its share, in whole characters.
func TestMessagesAreBounded(t *testing.T) {
	remembered := &v1.ContainerStateTerminated{Message: strings.Repeat("x", 4094) + "éé"}
	s := v1.PodStatus{
		InitContainerStatuses: []v1.ContainerStatus{{State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Message: "a\xffb"}}}},
		ContainerStatuses: []v1.ContainerStatus{
			{State: v1.ContainerState{Terminated: remembered}, LastTerminationState: v1.ContainerState{Terminated: remembered}},
			{State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Message: strings.Repeat("é", 3000)}}},
			{State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}},
		},
	}
	boundMessages(&s)
	if m := s.InitContainerStatuses[0].State.Terminated.Message; m != "a\uFFFDb" {
		t.Errorf("what is no text became %q", m)
	}
	for _, m := range []string{s.ContainerStatuses[0].State.Terminated.Message, s.ContainerStatuses[0].LastTerminationState.Terminated.Message} {
		if m != strings.Repeat("x", 3072) {
			t.Errorf("of four containers one has %d bytes", len(m))
		}
	}
	if m := s.ContainerStatuses[1].State.Terminated.Message; m != strings.Repeat("é", 1536) {
		t.Errorf("cut to %d bytes, ending with %q", len(m), m[len(m)-4:])
	}
	if len(remembered.Message) != 4098 {
		t.Error("what is remembered was cut")
	}
	s.ContainerStatuses[1].State.Terminated.Message = "x" + strings.Repeat("é", 3000)
	boundMessages(&s)
	if m := s.ContainerStatuses[1].State.Terminated.Message; m != "x"+strings.Repeat("é", 1535) {
		t.Errorf("half a character at the end: %q", m[len(m)-4:])
	}
}
