package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Refused names, in the user's words, what the pod asks for that this peer cannot
// give and without which the pod would not be what was asked for. Such a pod is
// not started.
func Refused(pod *v1.Pod) []string {
	var out []string
	refuse := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	s := pod.Spec
	if s.OS != nil && s.OS.Name != "" && s.OS.Name != v1.Linux {
		refuse("spec.os.name: %s is not supported: peers run Linux", s.OS.Name)
	}
	if len(s.ResourceClaims) > 0 {
		refuse("spec.resourceClaims is not supported")
	}
	for _, c := range Containers(pod) {
		if len(c.VolumeDevices) > 0 {
			refuse("container %s: volumeDevices is not supported", c.Name)
		}
		if c.Lifecycle != nil && c.Lifecycle.PostStart != nil && c.Lifecycle.PostStart.TCPSocket != nil {
			refuse("container %s: lifecycle.postStart.tcpSocket is not supported, nor is it by Kubernetes; use exec, httpGet or sleep", c.Name)
		}
	}
	return out
}

// Ignored names what the pod asks for that this peer does not do, and without
// which it still makes sense to run it. It is said in an event.
func Ignored(pod *v1.Pod, host Host) []string {
	var out []string
	ignore := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	s := pod.Spec
	if sc := s.SecurityContext; sc != nil && sc.SELinuxOptions != nil && !host.SELinux {
		ignore("spec.securityContext.seLinuxOptions is not applied: this machine has no SELinux")
	}
	for _, c := range Containers(pod) {
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil && c.Lifecycle.PreStop.TCPSocket != nil {
			ignore("container %s: lifecycle.preStop.tcpSocket has no effect, nor has it with Kubernetes; use exec, httpGet or sleep", c.Name)
		}
		for _, p := range c.Ports {
			if p.HostPort != 0 && !s.HostNetwork && p.HostIP != "" && !podsHave(host, p.HostIP) {
				ignore("container %s: hostPort %d is not published on %s: pods have no address of that IP family", c.Name, p.HostPort, p.HostIP)
			}
		}
		if sc := c.SecurityContext; sc != nil && sc.SELinuxOptions != nil && !host.SELinux {
			ignore("container %s: securityContext.seLinuxOptions is not applied: this machine has no SELinux", c.Name)
		}
	}
	return out
}

// podsHave tells whether pods have an address of the IP family of ip.
func podsHave(host Host, ip string) bool {
	return slices.ContainsFunc(host.PodCIDRs, func(cidr netip.Prefix) bool { return cidr.Addr().Is6() == strings.Contains(ip, ":") })
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
