package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Labels that sandboxes and containers carry, so that a restarted daemon knows
// whose they are. The first four are what every kubelet uses; tools look for them.
const (
	LabelPodName      = "io.kubernetes.pod.name"
	LabelPodNamespace = "io.kubernetes.pod.namespace"
	LabelPodUID       = "io.kubernetes.pod.uid"
	LabelContainer    = "io.kubernetes.container.name"
	LabelAttempt      = "io.rookery.attempt"
	LabelHash         = "io.rookery.spec-hash"
)

// Identity is what the labels and the name of a sandbox say about it.
type Identity struct {
	Namespace, Name string
	UID             types.UID
	Attempt         int
}

// SandboxName is unique on the machine: NAME_NAMESPACE_UID_ATTEMPT. None of the
// parts can contain an underscore.
func SandboxName(pod *v1.Pod, attempt int) string {
	return fmt.Sprintf("%s_%s_%s_%d", pod.Name, pod.Namespace, pod.UID, attempt)
}

// ParseSandboxName reads what SandboxName wrote.
func ParseSandboxName(name string) (Identity, bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 4 {
		return Identity{}, false
	}
	attempt, err := strconv.Atoi(parts[3])
	if err != nil {
		return Identity{}, false
	}
	return Identity{Name: parts[0], Namespace: parts[1], UID: types.UID(parts[2]), Attempt: attempt}, true
}

// IsOurs tells whether a name is one that SandboxName or ContainerName made, or that of
// the infra container of a sandbox.
func IsOurs(name string) bool {
	parts := strings.Split(strings.TrimSuffix(name, "-infra"), "_")
	if len(parts) != 4 && len(parts) != 5 {
		return false
	}
	const uidLength = 36 // of a UUID as text
	_, err := strconv.Atoi(parts[len(parts)-1])
	return err == nil && len(parts[len(parts)-2]) == uidLength
}

// ContainerName is unique on the machine: CONTAINER_NAME_NAMESPACE_UID_ATTEMPT.
func ContainerName(pod *v1.Pod, container string, attempt int) string {
	return fmt.Sprintf("%s_%s_%s_%s_%d", container, pod.Name, pod.Namespace, pod.UID, attempt)
}

// ContainerIdentity reads the pod's name for a container and its attempt, which is
// its restart count. False if the container is none that this package named.
func ContainerIdentity(c runtime.Container) (name string, attempt int, ok bool) {
	attempt, err := strconv.Atoi(c.Labels[LabelAttempt])
	name = c.Labels[LabelContainer]
	return name, attempt, err == nil && name != ""
}

// Hash changes when a running container has to be replaced because its spec
// changed. As in kubelet only name and image count: nothing else of a running
// pod can be changed without its leave.
func Hash(c *v1.Container) string {
	sum := sha256.Sum256([]byte(c.Name + "\x00" + c.Image))
	return hex.EncodeToString(sum[:8])
}

func podLabels(pod *v1.Pod) map[string]string {
	return map[string]string{
		LabelPodName:      pod.Name,
		LabelPodNamespace: pod.Namespace,
		LabelPodUID:       string(pod.UID),
	}
}

func containerLabels(pod *v1.Pod, c *v1.Container, attempt int) map[string]string {
	labels := podLabels(pod)
	labels[LabelContainer] = c.Name
	labels[LabelAttempt] = strconv.Itoa(attempt)
	labels[LabelHash] = Hash(c)
	return labels
}

// Containers are all of a pod: init containers, containers, ephemeral ones.
func Containers(pod *v1.Pod) []*v1.Container {
	var out []*v1.Container
	for i := range pod.Spec.InitContainers {
		out = append(out, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, ephemeral(&pod.Spec.EphemeralContainers[i]))
	}
	return out
}

// ephemeral is the container in an ephemeral one: the same fields, by upstream's promise.
func ephemeral(c *v1.EphemeralContainer) *v1.Container {
	return (*v1.Container)(&c.EphemeralContainerCommon)
}

// Ephemeral returns the ephemeral container of that name, or nil.
func Ephemeral(pod *v1.Pod, name string) *v1.EphemeralContainer {
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return &pod.Spec.EphemeralContainers[i]
		}
	}
	return nil
}

// Find returns the container of that name, of whichever kind, or nil.
func Find(pod *v1.Pod, name string) *v1.Container {
	for _, c := range Containers(pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}
