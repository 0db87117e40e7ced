package spec

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
)

// Host is what this machine can do for the security of pods.
type Host struct {
	AppArmor, SELinux bool
	// Sysctls that a pod may set beside the safe ones; a name may end in "*". They must be
	// namespaced, or a pod would set them for the whole machine.
	Sysctls []string
	// PodCIDRs are this machine's parts of the pod network: pods have an address of each.
	PodCIDRs []netip.Prefix
}

// ThisHost looks at the machine. sysctls are as in Host.
func ThisHost(sysctls []string) Host {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, noSELinux := os.Stat("/sys/fs/selinux/enforce")
	return Host{
		AppArmor: err == nil && strings.HasPrefix(string(enabled), "Y"),
		SELinux:  noSELinux == nil,
		Sysctls:  sysctls,
	}
}

// ValidSysctls says which of the names cannot be allowed, and why.
func ValidSysctls(names []string) error {
	for _, name := range names {
		if ns, _, _ := utilsysctl.GetNamespace(name); ns == utilsysctl.UnknownNamespace {
			return fmt.Errorf("the sysctl %q is not known to be namespaced: it would be set for the whole machine", name)
		}
	}
	return nil
}

// safeSysctls are those that have no effect on any other pod, as in kubelet; the kernels
// that Podman runs on have a namespace for each.
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
		"net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat",
	}
}

// Rejected says why this machine does not admit the pod, in kubelet's words; the reason
// is empty if it does. Such a pod has failed, and its controller may try another peer.
func Rejected(pod *v1.Pod, host Host) (reason, message string) {
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			if err := sysctlAllowed(pod, utilsysctl.NormalizeName(s.Name), host.Sysctls); err != nil {
				return "SysctlForbidden", "forbidden sysctl: " + err.Error()
			}
		}
	}
	for _, c := range Containers(pod) {
		if p := appArmor(pod, c); p != nil && p.Type != v1.AppArmorProfileTypeUnconfined && !host.AppArmor {
			return "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"
		}
	}
	return "", ""
}

func sysctlAllowed(pod *v1.Pod, name string, more []string) error {
	for _, allowed := range append(safeSysctls(), more...) {
		ns, pattern, prefixed := utilsysctl.GetNamespace(allowed)
		if name != pattern && !(prefixed && strings.HasPrefix(name, pattern)) {
			continue
		}
		if ns == utilsysctl.IPCNamespace && pod.Spec.HostIPC || ns == utilsysctl.NetNamespace && pod.Spec.HostNetwork {
			return fmt.Errorf("%q not allowed with host %s enabled", name, ns)
		}
		return nil
	}
	return fmt.Errorf("%q not allowlisted", name)
}
