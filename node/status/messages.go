package status

import (
	"strings"

	v1 "k8s.io/api/core/v1"
)

// maxMessages is how much all termination messages of a pod may take together, as in
// kubelet: each container has its share.
const maxMessages = 12 << 10

// boundMessages cuts termination messages to their share. What was read from a file may be no
// text at all; the API keeps text only.
func boundMessages(s *v1.PodStatus) {
	lists := [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses}
	containers := 0
	for _, list := range lists {
		containers += len(list)
	}
	for _, list := range lists {
		for i := range list {
			for _, state := range []*v1.ContainerState{&list[i].State, &list[i].LastTerminationState} {
				if end := state.Terminated; end != nil && end.Message != "" {
					cut := *end // it is remembered as it was
					cut.Message = text(end.Message, maxMessages/containers)
					state.Terminated = &cut
				}
			}
		}
	}
}

// text is the beginning of s, of at most so many bytes, without what is not UTF-8.
func text(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") // not half a character
	}
	return s
}
