package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fields is one pod with as many fields of security and configuration as fit together.
const fields = `apiVersion: v1
kind: ConfigMap
metadata: {name: fields, namespace: hello}
data: {key: one, left: "0", right: "0"}
---
apiVersion: v1
kind: Secret
metadata: {name: fields, namespace: hello}
stringData: {pass: one}
---
apiVersion: v1
kind: Pod
metadata: {name: fields, namespace: hello, labels: {tier: one}}
spec:
  nodeName: h2
  hostname: h
  subdomain: sub
  setHostnameAsFQDN: true
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsUser: 1000
    runAsGroup: 1000
    runAsNonRoot: true
    fsGroup: 4000
    supplementalGroups: [7]
    supplementalGroupsPolicy: Strict
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}, {name: net.core.somaxconn, value: "77"}]
  initContainers:
  - name: prepare
    image: localhost/busybox:1
    resources: {limits: {memory: 64Mi}}
    command: [sh, -c, "echo page > /www/index.html; echo \"A='from a file'\" > /www/env"]
    volumeMounts: [{name: www, mountPath: /www}]
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "cd /www && httpd -f -p 80"] # its user may do that by the sysctl alone
    resources: {limits: {memory: 64Mi}}
    lifecycle: {preStop: {tcpSocket: {port: 80}}}
    ports:
    - {containerPort: 80, hostPort: 18080}
    - {containerPort: 80, hostPort: 18081, hostIP: 127.0.0.1}
    env: [{name: FROM_FILE, valueFrom: {fileKeyRef: {volumeName: www, path: env, key: A}}}]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN]}
    volumeMounts:
    - {name: www, mountPath: /www}
    - {name: www, mountPath: /part, subPath: made/here}
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /one, subPath: key}
    - {name: info, mountPath: /info}
    - {name: secret, mountPath: /secret}
    - {name: both, mountPath: /both}
    - {name: memory, mountPath: /memory}
    - {name: dev, mountPath: /dev1, readOnly: true, recursiveReadOnly: Enabled}
    - {name: dev, mountPath: /dev2, readOnly: true}
  volumes:
  - {name: www, emptyDir: {}}
  - {name: conf, configMap: {name: fields}}
  - {name: info, downwardAPI: {items: [{path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}}
  - {name: secret, secret: {secretName: fields}}
  - {name: both, projected: {sources: [{configMap: {name: fields}}, {secret: {name: fields}}, {downwardAPI: {items: [{path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}}]}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: dev, hostPath: {path: /dev, type: Directory}}
`

func manifest(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPodFields(t *testing.T) {
	file := manifest(t, fields)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+file)
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/fields --timeout=60s")
	in := func(script string) []string {
		return []string{"rookery", "-n", "hello", "exec", "fields", "-c", "web", "--", "sh", "-c", script}
	}

	for name, tt := range map[string]struct{ script, want string }{
		"name":              {"hostname; cat /etc/hostname", "h.sub.hello.svc.cluster.local\nh.sub.hello.svc.cluster.local\n"},
		"variable":          {"echo $FROM_FILE", "from a file\n"},
		"user and groups":   {"id -u; id -G", "1000\n1000 7 4000\n"},
		"capabilities":      {"grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status", "CapBnd:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\n"},
		"sysctls":           {"cd /proc/sys/net && cat ipv4/ip_unprivileged_port_start core/somaxconn", "80\n77\n"},
		"files":             {"cat /conf/key /one /info/tier /secret/pass /both/key /both/pass /both/tier", strings.Repeat("one", 7)},
		"memory of the pod": {"grep ' /memory ' /proc/mounts | grep -o 'size=[0-9]*k'", "size=65536k\n"},
		"subPath":           {"touch /part/x && ls /www/made/here", "x\n"},
		"read-only root":    {"touch /x 2>/dev/null || echo refused", "refused\n"},
		"read-only below":   {"touch /dev1/shm/rk-e2e 2>/dev/null || echo refused", "refused\n"},
		"and not otherwise": {"touch /dev2/shm/rk-e2e && rm /dev2/shm/rk-e2e && echo written", "written\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out := must(t, "h3", in(tt.script)...)
			if name == "user and groups" {
				out = sortWords(out)
				tt.want = sortWords(tt.want)
			}
			if out != tt.want {
				t.Errorf("printed %q, want %q", out, tt.want)
			}
		})
	}
	contains(t, "h1", []string{"/dev1:Enabled", "/dev2:Disabled"}, "rookery", "-n", "hello", "get", "pod", "fields", "-o", `jsonpath={range .status.containerStatuses[0].volumeMounts[*]}{.mountPath}:{.recursiveReadOnly} {end}`)

	events(t, "fields", "Unsupported", "container web: lifecycle.preStop.tcpSocket has no effect")

	get := func(host, url string) (string, error) {
		return shared.Run(t.Context(), host, shared.Bin+"/hello", "get", url)
	}
	for host, url := range map[string]string{"client": "http://10.77.0.2:18080/", "h2": "http://127.0.0.1:18081/", "h3": "http://10.77.0.2:18080/"} {
		if out, err := get(host, url); err != nil || !strings.Contains(out, "page") {
			t.Errorf("host port from %s: %q %v", host, out, err)
		}
	}
	if out, err := get("h2", "http://10.77.0.2:18080/"); err != nil || !strings.Contains(out, "page") {
		t.Errorf("host port from its own machine: %q %v", out, err)
	}
	if out, err := get("client", "http://10.77.0.2:18081/"); err == nil {
		t.Errorf("the port of the loopback address answers the LAN: %q", out)
	}

	t.Run("all files of a volume change at once", atOnce)
	sh(t, "h3", "rookery -n hello label pod fields --overwrite tier=two")
	must(t, "h3", "rookery", "-n", "hello", "patch", "configmap", "fields", "-p", `{"data":{"key":"two"}}`)
	must(t, "h3", "rookery", "-n", "hello", "patch", "secret", "fields", "-p", `{"stringData":{"pass":"two"}}`)
	took := eventually(t, patience, func() error {
		out, err := shared.Run(t.Context(), "h3", in("cat /conf/key /info/tier /secret/pass /both/key /both/pass /both/tier /one")...)
		if err == nil && out != strings.Repeat("two", 6)+"one" {
			err = fmt.Errorf("files are %q", out)
		}
		return err
	})
	t.Logf("files followed after %s", took)

	sh(t, "h1", "rookery -n hello delete pod fields")
	if out, err := get("client", "http://10.77.0.2:18080/"); err == nil {
		t.Errorf("the host port of a pod that is gone answers %q", out)
	}
	if out := must(t, "h2", "sh", "-c", "grep -c "+shared.HostDir("h2")+"/rookery/pods/.*/mounts /proc/self/mountinfo || true"); strings.TrimSpace(out) != "0" {
		t.Errorf("%s mounts are left", strings.TrimSpace(out))
	}
}

// atOnce changes two keys of a ConfigMap together, again and again, while a program reads both.
// What Kubernetes promises is that ..data leads to the one or to the other state of the volume:
// so it is what the program goes into before it reads. It tries again where the state that it
// went into is removed under it.
func atOnce(t *testing.T) {
	const rounds = 20
	reader, err := shared.Command(t.Context(), "h3", "timeout", "300", "rookery", "-n", "hello", "exec", "fields", "-c", "web", "--", "sh", "-c", `
		was=0; while [ "$was" != `+fmt.Sprint(rounds)+` ]; do
			now=$(cd -P /conf/..data 2>/dev/null && l=$(cat left 2>/dev/null) && r=$(cat right 2>/dev/null) && echo "$l $r") || continue
			[ "$now" = "$was $was" ] || echo "$now"
			was=${now#* }
		done`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := reader.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	change := func(to int) {
		t.Helper()
		patch := fmt.Appendf(nil, `{"data":{"left":"%d","right":"%d"}}`, to, to)
		if _, err := api(t).CoreV1().ConfigMaps("hello").Patch(t.Context(), "fields", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	change(1)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if seen++; lines.Text() != fmt.Sprintf("%d %d", seen, seen) {
			t.Errorf("change %d: left and right are %q", seen, lines.Text())
		}
		if seen < rounds {
			change(seen + 1)
		}
	}
	if err := reader.Wait(); err != nil || seen != rounds {
		t.Errorf("%d of %d changes were read: %v", seen, rounds, err)
	}
}

func sortWords(s string) string {
	words := map[string]bool{}
	for _, w := range strings.Fields(s) {
		words[w] = true
	}
	return fmt.Sprint(words)
}

// hostile wants the host's files by a link in place of its subPath, a kernel setting
// that is not its own, and a hook that there is none of.
const hostile = `apiVersion: v1
kind: Pod
metadata: {name: link, namespace: hello}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: evil, image: "localhost/busybox:1", command: [sh, -c, "ln -s / /v/sub"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sleep, "600"], volumeMounts: [{name: v, mountPath: /host, subPath: sub}]}
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: sysctl, namespace: hello}
spec:
  nodeName: h2
  securityContext: {sysctls: [{name: kernel.msgmax, value: "65536"}]}
  containers: [{name: web, image: "localhost/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hook, namespace: hello}
spec:
  nodeName: h2
  containers: [{name: web, image: "localhost/busybox:1", command: [sleep, "600"], lifecycle: {postStart: {tcpSocket: {port: 80}}}}]
`

// sandboxReady is whether the pod's network and volumes are there, so that its containers may start.
const sandboxReady = `{.status.conditions[?(@.type=="PodReadyToStartContainers")].status}`

func TestHostilePods(t *testing.T) {
	file := manifest(t, hostile)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete -f "+file)
	contains(t, "h1", []string{"CreateContainerConfigError", `failed to prepare subPath for volumeMount`, "not within volume path"},
		"rookery", "-n", "hello", "get", "pod", "link", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
	contains(t, "h1", []string{"True False"}, "rookery", "-n", "hello", "get", "pod", "link", "-o", "jsonpath="+sandboxReady+` {.status.conditions[?(@.type=="Ready")].status}`)
	contains(t, "h1", []string{"Failed SysctlForbidden", `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"rookery", "-n", "hello", "get", "pod", "sysctl", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
	contains(t, "h1", []string{"CreateContainerConfigError", "lifecycle.postStart.tcpSocket is not supported"},
		"rookery", "-n", "hello", "get", "pod", "hook", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
}

// own is a pod whose root is nobody on the machine.
const own = `apiVersion: v1
kind: ConfigMap
metadata: {name: own, namespace: hello}
data: {key: one}
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: hello}
spec:
  nodeName: h2
  hostUsers: false
  hostname: unseen
  hostnameOverride: its.own.name
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "echo started > /data/file; sleep 600"]
    terminationMessagePath: /dev/termination-log
    securityContext: {procMount: Unmasked}
    volumeMounts: [{name: data, mountPath: /data}, {name: mem, mountPath: /mem}, {name: conf, mountPath: /conf}, {name: conf, mountPath: /one, subPath: key}]
  - {name: other, image: "localhost/busybox:1", command: [sleep, "600"]}
  volumes: [{name: data, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory}}, {name: conf, configMap: {name: own}}]
`

func TestPodFieldsOwnUsers(t *testing.T) {
	file := manifest(t, own)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+file)
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/own --timeout=60s")
	in := func(script string) []string {
		return []string{"rookery", "-n", "hello", "exec", "own", "-c", "web", "--", "sh", "-c", script}
	}
	hidden := "grep -c ' /proc/' /proc/self/mountinfo || true"
	if out := must(t, "h3", "rookery", "-n", "hello", "exec", "own", "-c", "other", "--", "sh", "-c", hidden); strings.TrimSpace(out) == "0" {
		t.Error("nothing of /proc is hidden from the container that did not ask for that")
	}
	for name, tt := range map[string]struct{ script, want string }{
		"its name":                   {"hostname; cat /etc/hostname; grep -c 'its.own.name' /etc/hosts", "its.own.name\nits.own.name\n1\n"},
		"root inside":                {"id -u; cat /proc/self/uid_map | tr -s ' ' | cut -d' ' -f2,4", "0\n0 65536\n"},
		"its files":                  {"ls -n /data /conf /etc/hosts /dev/termination-log | grep -v -E ' 0 +0 ' | grep -E '^[-dl]' ; ls -nd /data /mem /conf | grep -v -c -E ' 0 +0 ' || true", "0\n"},
		"it writes":                  {"echo x > /data/new && echo x > /mem/new && echo x >> /etc/hosts && cat /one /data/file", "onestarted\n"},
		"nothing of /proc is hidden": {hidden, "0\n"},
		"memory of the node":         {"stat -f -c %b /mem", fmt.Sprintln(pages(t, "h2"))},
	} {
		t.Run(name, func(t *testing.T) {
			if out := must(t, "h3", in(tt.script)...); out != tt.want {
				t.Errorf("printed %q, want %q", out, tt.want)
			}
		})
	}
	// On the machine its processes are of another user, and on disk its files are of root.
	uid := strings.TrimSpace(must(t, "h2", "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^sleep 600' && awk '/^Uid:/ {print $2}' $p/status; done | sort -u`))
	var id int
	if _, err := fmt.Sscan(uid, &id); err != nil || id < 65536 || id%65536 != 0 {
		t.Errorf("the processes are of user %q on the machine", uid)
	}
	if out := must(t, "h2", "sh", "-c", "stat -c %u "+shared.HostDir("h2")+"/rookery/pods/*/volumes/data/file"); strings.TrimSpace(out) != "0" {
		t.Errorf("its file is of user %s on disk", out)
	}
}

// pages is how much memory a node has for pods.
func pages(t *testing.T, node string) int64 {
	t.Helper()
	n, err := api(t).CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	return (n.Status.Allocatable.Memory().Value() + page - 1) / page
}

// again starts all over once. The scheduler looks for a node that says that it can.
const again = `apiVersion: v1
kind: Pod
metadata: {name: again, namespace: hello}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: count, image: "localhost/busybox:1", command: [sh, -c, "echo x >> /d/inits"], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sleep, "600"]}
  - name: watch
    image: localhost/busybox:1
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
    command: [sh, -c, "test -f /d/again && exec sleep 600; touch /d/again; exit 42"]
    volumeMounts: [{name: d, mountPath: /d}]
  volumes: [{name: d, emptyDir: {}}]
`

func TestPodFieldsRestartAll(t *testing.T) {
	file := manifest(t, again)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete -f "+file)
	contains(t, "h1", []string{"Running count=1 web=1 watch=1 AllContainersRestarting=False"}, "rookery", "-n", "hello", "get", "pod", "again", "-o",
		`jsonpath={.status.phase} {range .status.initContainerStatuses[*]}{.name}={.restartCount} {end}{range .status.containerStatuses[*]}{.name}={.restartCount} {end}{range .status.conditions[?(@.type=="AllContainersRestarting")]}{.type}={.status}{end}`)
	// The attempt is counted before the container runs.
	if out := contains(t, "h3", []string{"x\nx\n"}, "rookery", "-n", "hello", "exec", "again", "-c", "watch", "--", "cat", "/d/inits"); out != "x\nx\n" {
		t.Errorf("init ran %q", out)
	}
}
