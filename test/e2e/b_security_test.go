package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/test/image"
)

// seccompDir is where peers look for profiles of type Localhost, as kubelets do.
const seccompDir = "/var/lib/kubelet/seccomp"

const securityPods = `
{apiVersion: v1, kind: Pod, metadata: {name: sec, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0,
  securityContext: {runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [7], fsGroup: 4000}, volumes: [{name: d, emptyDir: {}}],
  containers: [
    {name: pod, image: localhost/busybox:1, command: [sleep, "1000"]},
    {name: own, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {runAsUser: 1001, runAsGroup: 2001, runAsNonRoot: true}},
    {name: caps, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [CHOWN, CAP_NET_RAW]}}},
    {name: nopriv, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}}},
    {name: free, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {seccompProfile: {type: Unconfined}}},
    {name: local, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {seccompProfile: {type: Localhost, localhostProfile: rookery-e2e/no-mkdir.json}}},
    {name: all, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {privileged: true, runAsUser: 0}},
    {name: ro, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {readOnlyRootFilesystem: true, runAsUser: 0}, volumeMounts: [{name: d, mountPath: /d}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: groups, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, securityContext: {supplementalGroups: [7]}, containers: [
    {name: image, image: localhost/users:1, command: [/bin/sleep, "1000"]},
    {name: group, image: localhost/users:1, command: [/bin/sleep, "1000"], securityContext: {runAsUser: 1000, runAsGroup: 5}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: strict, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, securityContext: {supplementalGroups: [7], supplementalGroupsPolicy: Strict}, containers: [
    {name: image, image: localhost/users:1, command: [/bin/sleep, "1000"]},
    {name: group, image: localhost/users:1, command: [/bin/sleep, "1000"], securityContext: {runAsUser: 1000, runAsGroup: 5}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: refused, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [
    {name: root, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {runAsNonRoot: true}},
    {name: named, image: localhost/users:1, command: [/bin/sleep, "1000"], securityContext: {runAsNonRoot: true}},
    {name: zero, image: localhost/users:1, command: [/bin/sleep, "1000"], securityContext: {runAsNonRoot: true, runAsUser: 0}},
    {name: profile, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {seccompProfile: {type: Localhost, localhostProfile: rookery-e2e/nosuch.json}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host-ns, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, hostPID: true, hostIPC: true, hostNetwork: true, containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: share-ns, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, shareProcessNamespace: true, containers: [{name: a, image: localhost/busybox:1, command: [sleep, "1111"]}, {name: b, image: localhost/busybox:1, command: [sleep, "2222"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: own-ns, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [{name: a, image: localhost/busybox:1, command: [sleep, "1111"]}, {name: b, image: localhost/busybox:1, command: [sleep, "2222"]}]}}
`

// As whom a pod's processes run, what they may do and what of the machine they see.
func TestPodSecurity(t *testing.T) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := []image.File{
		{Path: "/bin/busybox", Mode: 0o755, Data: busybox},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0::/:\nwww:x:1000:1500::/:\n")}, {Path: "/etc/group", Data: []byte("www:x:1500:\nextra:x:1600:www\n")},
	}
	for _, applet := range []string{"sh", "sleep", "id"} {
		files = append(files, image.File{Path: "/bin/" + applet, Link: "busybox"})
	}
	loadImage(t, image.Spec{Names: []string{"localhost/users:1"}, User: "www", Files: files})
	profiles := filepath.Join(seccompDir, "rookery-e2e")
	if err := os.MkdirAll(profiles, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(profiles); err != nil {
			t.Error(err)
		}
	})
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filepath.Join(profiles, "no-mkdir.json"), []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	file := manifest(t, securityPods)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found --grace-period=0 --force -f "+file)
	untilPod(t, "sec", is("Running pod:ready own:ready caps:ready nopriv:ready free:ready local:ready all:ready ro:ready"))
	for _, name := range []string{"groups", "strict"} {
		untilPod(t, name, is("Running image:ready group:ready"))
	}

	for _, tt := range []struct{ pod, container, script, want string }{
		{"sec", "pod", "id -u; id -g; id -G", "1000 2000 4000 7"},
		{"sec", "own", "id -u; id -g; id -G", "1001 2001 4000 7"},
		{"sec", "caps", "grep -E '^Cap(Bnd|Eff)' /proc/self/status", "0000000000002001 CapBnd: CapEff:"},
		{"sec", "caps", "touch /tmp/f && chown 5 /tmp/f && echo may; mknod /tmp/n c 1 3 2>/dev/null || echo may not", "may not"},
		{"sec", "nopriv", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status", "1 2 NoNewPrivs: Seccomp:"},
		{"sec", "free", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status", "0 NoNewPrivs: Seccomp:"},
		{"sec", "local", "mkdir /tmp/x 2>&1 | grep -o 'not permitted'", "not permitted"},
		{"sec", "pod", "mkdir /tmp/x && echo made", "made"},
		{"sec", "all", "grep -E '^Seccomp:' /proc/self/status; mkdir /m && mount -t tmpfs tmpfs /m && echo mounted", "0 Seccomp: mounted"},
		{"sec", "ro", "touch /x 2>/dev/null || echo refused; touch /d/x && echo written", "refused written"},
		{"groups", "image", "id -u; id -g; id -G", "1000 1500 1600 7"},
		{"groups", "group", "id -u; id -g; id -G", "1000 1600 5 7"},
		{"strict", "image", "id -u; id -g; id -G", "1000 1500 7"},
		{"strict", "group", "id -u; id -g; id -G", "1000 5 7"},
	} {
		out := must(t, "h3", "rookery", "-n", "hello", "exec", tt.pod, "-c", tt.container, "--", "sh", "-c", tt.script)
		if sortWords(out) != sortWords(tt.want) {
			t.Errorf("%s in %s/%s printed %q, want the words %q", tt.script, tt.pod, tt.container, out, tt.want)
		}
	}
	t.Run("user in the status", func(t *testing.T) {
		for _, tt := range []struct{ pod, container, want string }{
			{"sec", "pod", "1000 2000 [7 4000]"}, {"sec", "own", "1001 2001 [7 4000]"}, {"sec", "all", "0 2000 [7 4000]"},
			{"groups", "image", "1000 1500 [7 1600]"}, {"strict", "image", "1000 1500 [7]"}, {"strict", "group", "1000 5 [7]"},
		} {
			if have := userOf(containerOf(podNow(t, tt.pod), tt.container)); have != tt.want {
				t.Errorf("%s/%s: %s, want %s", tt.pod, tt.container, have, tt.want)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		pod := untilPod(t, "refused", is("Pending ContainersReady=ContainersNotReady Ready=ContainersNotReady root:CreateContainerConfigError named:CreateContainerConfigError zero:CreateContainerConfigError profile:CreateContainerError"))
		for name, want := range map[string]string{
			"root":    "container has runAsNonRoot and image will run as root",
			"named":   "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root",
			"zero":    "container's runAsUser breaks non-root policy",
			"profile": profiles + "/nosuch.json",
		} {
			if m := containerOf(pod, name).State.Waiting.Message; !strings.Contains(m, want) {
				t.Errorf("%s: %q, want %q", name, m, want)
			}
		}
	})
	t.Run("namespaces", func(t *testing.T) {
		untilPod(t, "host-ns", is("Running c:ready"))
		untilPod(t, "share-ns", is("Running a:ready b:ready"))
		untilPod(t, "own-ns", is("Running a:ready b:ready"))
		link := func(pod, ns string) string {
			return must(t, "h3", "rookery", "-n", "hello", "exec", pod, "--", "readlink", "/proc/self/ns/"+ns)
		}
		for _, ns := range []string{"pid", "ipc", "net", "uts"} {
			host := must(t, "h2", "readlink", "/proc/self/ns/"+ns)
			if have := link("host-ns", ns); have != host {
				t.Errorf("with the host's: %s is %s, the host's %s", ns, have, host)
			}
			if link("own-ns", ns) == host {
				t.Errorf("without: %s is the host's", ns)
			}
		}
		sees := func(pod, container string) string {
			return must(t, "h3", "rookery", "-n", "hello", "exec", pod, "-c", container, "--", "sh", "-c", "ps -o args | grep -E -c '^(sleep) (1111|2222)$' || true")
		}
		if have := sees("share-ns", "a"); have != "2\n" {
			t.Errorf("a container of a pod that shares sees %s", have)
		}
		if have := sees("own-ns", "a"); have != "1\n" {
			t.Errorf("one of a pod that does not sees %s", have)
		}
	})
}

// userOf is a container's user with its groups, but for its own, in order.
func userOf(c v1.ContainerStatus) string {
	if c.User == nil || c.User.Linux == nil {
		return "not told"
	}
	u := c.User.Linux
	groups := slices.DeleteFunc(slices.Clone(u.SupplementalGroups), func(gid int64) bool { return gid == u.GID })
	slices.Sort(groups)
	return fmt.Sprint(u.UID, " ", u.GID, " ", slices.Compact(groups))
}
