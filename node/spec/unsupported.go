package spec

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// Refused names, in the user's words, what the pod asks for that this peer cannot
// give and without which the pod would not be what was asked for. Such a pod is
// not started.
func Refused(pod *v1.Pod) []string {
	var out []string
	refuse := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	s := pod.Spec
	if s.HostUsers != nil && !*s.HostUsers {
		refuse("spec.hostUsers: false is not supported: user namespaces for pods are not available; remove the field")
	}
	if s.OS != nil && s.OS.Name != "" && s.OS.Name != v1.Linux {
		refuse("spec.os.name: %s is not supported: peers run Linux", s.OS.Name)
	}
	if s.RuntimeClassName != nil && *s.RuntimeClassName != "" {
		refuse("spec.runtimeClassName: %s is not supported: there is one container engine; remove the field", *s.RuntimeClassName)
	}
	if len(s.ResourceClaims) > 0 {
		refuse("spec.resourceClaims is not supported")
	}
	if sc := s.SecurityContext; sc != nil && sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict {
		refuse("spec.securityContext.supplementalGroupsPolicy: Strict is not supported")
	}
	for _, c := range allContainers(pod) {
		if len(c.VolumeDevices) > 0 {
			refuse("container %s: volumeDevices is not supported", c.Name)
		}
		if c.SecurityContext != nil && c.SecurityContext.ProcMount != nil && *c.SecurityContext.ProcMount != v1.DefaultProcMount {
			refuse("container %s: securityContext.procMount: %s is not supported", c.Name, *c.SecurityContext.ProcMount)
		}
		if p := appArmor(pod, c); p != nil && p.Type == v1.AppArmorProfileTypeLocalhost {
			refuse("container %s: an AppArmor profile of type Localhost is not supported", c.Name)
		}
		for name := range c.Resources.Limits {
			switch name {
			case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
			default:
				refuse("container %s: resource %s is not available on this peer", c.Name, name)
			}
		}
	}
	return out
}

// Ignored names what the pod asks for that this peer does not do, and without
// which it still makes sense to run it. It is said in an event.
func Ignored(pod *v1.Pod) []string {
	var out []string
	for _, c := range allContainers(pod) {
		for _, p := range c.Ports {
			if p.HostPort != 0 && !pod.Spec.HostNetwork {
				out = append(out, fmt.Sprintf("container %s: hostPort %d is not published; use a Service of type NodePort or hostNetwork", c.Name, p.HostPort))
			}
		}
		if sc := c.SecurityContext; sc != nil && sc.SELinuxOptions != nil {
			out = append(out, fmt.Sprintf("container %s: securityContext.seLinuxOptions is not applied", c.Name))
		}
		if _, ok := c.Resources.Limits[v1.ResourceEphemeralStorage]; ok {
			out = append(out, fmt.Sprintf("container %s: the limit on ephemeral-storage is not enforced", c.Name))
		}
	}
	if len(pod.Spec.EphemeralContainers) > 0 {
		out = append(out, "ephemeral containers are not started on this peer; use exec, or kubectl debug with --copy-to")
	}
	return out
}

func allContainers(pod *v1.Pod) []*v1.Container {
	var out []*v1.Container
	for i := range pod.Spec.InitContainers {
		out = append(out, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	return out
}

func appArmor(pod *v1.Pod, c *v1.Container) *v1.AppArmorProfile {
	if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
		return c.SecurityContext.AppArmorProfile
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.AppArmorProfile
	}
	return nil
}
