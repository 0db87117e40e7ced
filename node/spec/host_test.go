package spec

import (
	"net/netip"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

func TestRejected(t *testing.T) {
	for _, tt := range []struct {
		name, pod string
		host      Host
		want      string
	}{
		{"safe", `securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}, {name: net/ipv4/ip_unprivileged_port_start, value: "0"}]}`, Host{}, ""},
		{"unsafe", `securityContext: {sysctls: [{name: kernel.msgmax, value: "1"}]}`, Host{}, `SysctlForbidden: forbidden sysctl: "kernel.msgmax" not allowlisted`},
		{"allowed", `securityContext: {sysctls: [{name: kernel.msgmax, value: "1"}]}`, Host{Sysctls: []string{"kernel.msg*"}}, ""},
		{"of the host's network", `{hostNetwork: true, securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}]}}`, Host{}, `SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		{"of the host's IPC", `{hostIPC: true, securityContext: {sysctls: [{name: kernel.shm_rmid_forced, value: "1"}]}}`, Host{}, `SysctlForbidden: forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		{"AppArmor", `securityContext: {appArmorProfile: {type: RuntimeDefault}}`, Host{}, "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		{"AppArmor is there", `securityContext: {appArmorProfile: {type: RuntimeDefault}}`, Host{AppArmor: true}, ""},
		{"none wanted", `containers: [{name: web, securityContext: {appArmorProfile: {type: Unconfined}}}]`, Host{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := podOf(t, tt.pod)
			if pod.Spec.Containers == nil {
				pod.Spec.Containers = []v1.Container{{Name: "web"}}
			}
			reason, message := Rejected(pod, tt.host)
			have := ""
			if reason != "" {
				have = reason + ": " + message
			}
			if have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
	if err := ValidSysctls([]string{"kernel.msg*", "net.core.somaxconn"}); err != nil {
		t.Error(err)
	}
	if err := ValidSysctls([]string{"vm.swappiness"}); err == nil || !strings.Contains(err.Error(), "vm.swappiness") {
		t.Errorf("of the whole machine: %v", err)
	}
}

func TestProfiles(t *testing.T) {
	pod := podOf(t, `{securityContext: {seLinuxOptions: {type: svirt_t, level: "s0:c1"}}, containers: [{name: web, image: i, securityContext: {appArmorProfile: {type: Localhost, localhostProfile: mine}}}, {name: side, image: i, securityContext: {appArmorProfile: {type: Unconfined}}}]}`)
	for i, want := range []string{"mine", "unconfined"} {
		c, err := Container(pod, &pod.Spec.Containers[i], Input{Host: Host{AppArmor: true, SELinux: true}}, objects{})
		if err != nil || c.AppArmor != want || strings.Join(c.SELinux, " ") != "type:svirt_t level:s0:c1" {
			t.Errorf("%+v %v", c, err)
		}
		if c, err = Container(pod, &pod.Spec.Containers[i], Input{}, objects{}); err != nil || c.SELinux != nil {
			t.Errorf("without SELinux: %v %v", c.SELinux, err)
		}
	}
	if told := Ignored(pod, Host{}); len(told) != 1 || !strings.Contains(told[0], "has no SELinux") {
		t.Errorf("told %q", told)
	}
}

// A hook that Kubernetes' API takes and that nobody runs.
func TestTCPSocketHooks(t *testing.T) {
	pod := podOf(t, `{containers: [{name: web, lifecycle: {preStop: {tcpSocket: {port: 80}}}}]}`)
	if told := Ignored(pod, Host{}); len(told) != 1 || !strings.Contains(told[0], "container web: lifecycle.preStop.tcpSocket has no effect") || Refused(pod) != nil {
		t.Errorf("told %q, refused %q", told, Refused(pod))
	}
	pod = podOf(t, `{initContainers: [{name: side, restartPolicy: Always, lifecycle: {postStart: {tcpSocket: {port: 80}}}}], containers: [{name: web}]}`)
	if refused := Refused(pod); len(refused) != 1 || !strings.Contains(refused[0], "container side: lifecycle.postStart.tcpSocket is not supported") || Ignored(pod, Host{}) != nil {
		t.Errorf("refused %q, told %q", refused, Ignored(pod, Host{}))
	}
}

func TestStrictGroups(t *testing.T) {
	for _, tt := range []struct{ security, image, want string }{
		{`{}`, "", "0"},
		{`{}`, "root", "root"},
		{`{}`, "5:6", "5:6"},
		{`{runAsUser: 0}`, "", "0"},
		{`{runAsUser: 5, runAsGroup: 6}`, "", "5:6"},
		{`{runAsUser: 5}`, "", "5"},
		{`{runAsGroup: 6}`, "www", "www:6"},
		{`{}`, "www", "www"},
	} {
		pod := podOf(t, `{securityContext: {supplementalGroupsPolicy: Strict}, containers: [{name: web, securityContext: `+tt.security+`}]}`)
		c, err := Container(pod, &pod.Spec.Containers[0], Input{Image: runtime.Image{User: tt.image}}, objects{})
		have := c.User
		if err != nil {
			have = "error: " + err.Error()
		}
		if have != tt.want || c.ImageGroups {
			t.Errorf("%s of image %q: have %s, want %s", tt.security, tt.image, have, tt.want)
		}
	}
}

func TestNodename(t *testing.T) {
	for _, tt := range []struct{ pod, want string }{
		{`{hostname: h, subdomain: sub}`, "h"},
		{`{hostname: h, subdomain: sub, setHostnameAsFQDN: true}`, "h.sub.shop.svc.cluster.local"},
		{`{hostname: h, setHostnameAsFQDN: true}`, "h"},
		{`{hostname: ` + strings.Repeat("h", 40) + `, subdomain: sub, setHostnameAsFQDN: true}`, "error: failed to construct FQDN from pod hostname and cluster domain, FQDN " + strings.Repeat("h", 40) + ".sub.shop.svc.cluster.local is too long (64 characters is the max, 67 characters requested)"},
	} {
		s, err := Sandbox(podOf(t, tt.pod), 0, "cluster.local")
		have := s.Hostname
		if err != nil {
			have = "error: " + err.Error()
		}
		if have != tt.want {
			t.Errorf("%s: have %s, want %s", tt.pod, have, tt.want)
		}
	}
}

func TestHostPortOfAFamilyThatPodsLack(t *testing.T) {
	for _, c := range []struct {
		cidrs, ip string
		told      bool
	}{
		{"10.42.1.0/24", "", false}, {"10.42.1.0/24", "192.0.2.1", false}, {"10.42.1.0/24", "2001:db8::1", true}, {"10.42.1.0/24", "::", true},
		{"fd42::/64", "192.0.2.1", true}, {"fd42::/64", "0.0.0.0", true}, {"fd42::/64", "::1", false},
		{"10.42.1.0/24 fd42::/64", "192.0.2.1", false}, {"10.42.1.0/24 fd42::/64", "2001:db8::1", false},
	} {
		pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Ports: []v1.ContainerPort{{HostPort: 80, HostIP: c.ip}}}}}}
		var host Host
		for _, cidr := range strings.Fields(c.cidrs) {
			host.PodCIDRs = append(host.PodCIDRs, netip.MustParsePrefix(cidr))
		}
		if told := Ignored(pod, host); (len(told) == 1) != c.told {
			t.Errorf("%+v: %q", c, told)
		}
	}
}
