package spec

import (
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Sandbox translates the parts of a pod that its containers share. nodeName is the
// host name that a pod in the host's network sees.
func Sandbox(pod *v1.Pod, attempt int) runtime.SandboxSpec {
	s := runtime.SandboxSpec{
		Name:        SandboxName(pod, attempt),
		Labels:      podLabels(pod),
		HostNetwork: pod.Spec.HostNetwork,
		HostPID:     pod.Spec.HostPID,
		HostIPC:     pod.Spec.HostIPC,
	}
	if share := pod.Spec.ShareProcessNamespace; share != nil {
		s.ShareProcesses = *share
	}
	if !pod.Spec.HostNetwork {
		s.Hostname = Hostname(pod)
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		s.Sysctls = make(map[string]string, len(sc.Sysctls))
		for _, sysctl := range sc.Sysctls {
			// The API accepts both separators; the kernel's path and OCI want dots.
			s.Sysctls[strings.ReplaceAll(sysctl.Name, "/", ".")] = sysctl.Value
		}
	}
	return s
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

// FQDN is the pod's full name if it has a subdomain, else empty.
func FQDN(pod *v1.Pod, clusterDomain string) string {
	if pod.Spec.Subdomain == "" || pod.Spec.HostnameOverride != nil {
		return ""
	}
	return Hostname(pod) + "." + pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
}
