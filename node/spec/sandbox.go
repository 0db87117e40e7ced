package spec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Sandbox translates the parts of a pod that its containers share. nodeName is the
// host name that a pod in the host's network sees.
// An error is in the user's words.
func Sandbox(pod *v1.Pod, attempt int, clusterDomain string) (runtime.SandboxSpec, error) {
	s := runtime.SandboxSpec{
		Name:        SandboxName(pod, attempt),
		Labels:      podLabels(pod),
		HostNetwork: pod.Spec.HostNetwork,
		HostPID:     pod.Spec.HostPID,
		HostIPC:     pod.Spec.HostIPC,
		Resources:   PodResources(pod),
	}
	if share := pod.Spec.ShareProcessNamespace; share != nil {
		s.ShareProcesses = *share
	}
	if !pod.Spec.HostNetwork {
		var err error
		if s.Hostname, err = Nodename(pod, clusterDomain); err != nil {
			return runtime.SandboxSpec{}, err
		}
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		s.Sysctls = make(map[string]string, len(sc.Sysctls))
		for _, sysctl := range sc.Sysctls {
			// The API accepts both separators; the kernel's path and OCI want dots.
			s.Sysctls[strings.ReplaceAll(sysctl.Name, "/", ".")] = sysctl.Value
		}
	}
	return s, nil
}

// OwnUsers says whether the pod has users of its own, which are others on the machine.
func OwnUsers(pod *v1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// Ports are those of all containers that run as long as the pod does.
func Ports(pod *v1.Pod) []v1.ContainerPort {
	var out []v1.ContainerPort
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; IsSidecar(c) {
			out = append(out, c.Ports...)
		}
	}
	for i := range pod.Spec.Containers {
		out = append(out, pod.Spec.Containers[i].Ports...)
	}
	return out
}

// maxHostname is what the kernel takes: 64 bytes with the terminating zero.
const maxHostname = 63

// Hostname is the name that the pod's containers see.
func Hostname(pod *v1.Pod) string {
	name := pod.Name
	if pod.Spec.HostnameOverride != nil {
		name = *pod.Spec.HostnameOverride
	} else if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}

// maxNodename is what the kernel takes, in bytes.
const maxNodename = 64

// Nodename is what `hostname` prints in the pod: its full name where it has one and wants that.
func Nodename(pod *v1.Pod, clusterDomain string) (string, error) {
	fqdn := FQDN(pod, clusterDomain)
	if fqdn == "" || !isTrue(pod.Spec.SetHostnameAsFQDN) {
		return Hostname(pod), nil
	}
	if len(fqdn) > maxNodename {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, maxNodename, len(fqdn))
	}
	return fqdn, nil
}

// FQDN is the pod's full name if it has a subdomain, else empty.
func FQDN(pod *v1.Pod, clusterDomain string) string {
	if pod.Spec.Subdomain == "" || pod.Spec.HostnameOverride != nil {
		return ""
	}
	return Hostname(pod) + "." + pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
}
