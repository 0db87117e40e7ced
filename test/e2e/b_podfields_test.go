package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fields is one pod with as many fields of security and configuration as fit together.
const fields = `apiVersion: v1
kind: ConfigMap
metadata: {name: fields, namespace: hello}
data: {key: one}
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
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]
  initContainers:
  - name: prepare
    image: localhost/busybox:1
    command: [sh, -c, "echo page > /www/index.html; echo \"A='from a file'\" > /www/env"]
    volumeMounts: [{name: www, mountPath: /www}]
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "cd /www && httpd -f -p 80"]
    ports:
    - {containerPort: 80, hostPort: 18080}
    - {containerPort: 80, hostPort: 18081, hostIP: 127.0.0.1}
    env: [{name: FROM_FILE, valueFrom: {fileKeyRef: {volumeName: www, path: env, key: A}}}]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
    volumeMounts:
    - {name: www, mountPath: /www}
    - {name: www, mountPath: /part, subPath: made/here}
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /one, subPath: key}
    - {name: info, mountPath: /info}
    - {name: dev, mountPath: /dev1, readOnly: true, recursiveReadOnly: Enabled}
    - {name: dev, mountPath: /dev2, readOnly: true}
  volumes:
  - {name: www, emptyDir: {}}
  - {name: conf, configMap: {name: fields}}
  - {name: info, downwardAPI: {items: [{path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}}
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
		"capabilities":      {"grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status", "CapBnd:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n"},
		"files":             {"cat /conf/key /one /info/tier", "oneoneone"},
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

	sh(t, "h3", "rookery -n hello label pod fields --overwrite tier=two")
	must(t, "h3", "rookery", "-n", "hello", "patch", "configmap", "fields", "-p", `{"data":{"key":"two"}}`)
	took := eventually(t, 10*time.Second, func() error {
		out, err := shared.Run(t.Context(), "h3", in("cat /conf/key /one /info/tier")...)
		if err == nil && out != "twoonetwo" {
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

func sortWords(s string) string {
	words := map[string]bool{}
	for _, w := range strings.Fields(s) {
		words[w] = true
	}
	return fmt.Sprint(words)
}

// hostile wants the host's files by a link in place of its subPath, and a kernel setting
// that is not its own.
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
`

func TestHostilePods(t *testing.T) {
	file := manifest(t, hostile)
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete -f "+file)
	contains(t, "h1", []string{"CreateContainerConfigError", `failed to prepare subPath for volumeMount`, "not within volume path"},
		"rookery", "-n", "hello", "get", "pod", "link", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
	contains(t, "h1", []string{"Failed SysctlForbidden", `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"rookery", "-n", "hello", "get", "pod", "sysctl", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
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
	for name, tt := range map[string]struct{ script, want string }{
		"root inside":                {"id -u; cat /proc/self/uid_map | tr -s ' ' | cut -d' ' -f2,4", "0\n0 65536\n"},
		"its files":                  {"ls -n /data /conf /etc/hosts /dev/termination-log | grep -v -E ' 0 +0 ' | grep -E '^[-dl]' ; ls -nd /data /mem /conf | grep -v -c -E ' 0 +0 ' || true", "0\n"},
		"it writes":                  {"echo x > /data/new && echo x > /mem/new && echo x >> /etc/hosts && cat /one /data/file", "onestarted\n"},
		"nothing of /proc is hidden": {"grep -c ' /proc/' /proc/self/mountinfo || true", "0\n"},
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
	if out := must(t, "h3", "rookery", "-n", "hello", "exec", "again", "-c", "watch", "--", "cat", "/d/inits"); out != "x\nx\n" {
		t.Errorf("init ran %q", out)
	}
}
