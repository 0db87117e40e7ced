package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// background runs a command in a host until the test ends, or stop is called.
func background(t *testing.T, host string, argv ...string) (stop func()) {
	t.Helper()
	cmd, err := shared.Command(context.Background(), host, argv...)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { end(t, cmd) })
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			text, err := os.ReadFile(log.Name())
			t.Logf("%v said: %s %v", argv, text, err)
		}
		log.Close()
	})
	return stop
}

// end ends a command that runs in a host: nsenter has become it.
func end(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	children, err := exec.Command("pgrep", "-P", fmt.Sprint(cmd.Process.Pid)).Output()
	if err == nil { // nsenter forks where it enters a process namespace
		for _, pid := range strings.Fields(string(children)) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err == nil {
				_ = syscall.Kill(n, syscall.SIGTERM)
			}
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
}

const imagePods = `apiVersion: v1
kind: Pod
metadata: {name: open, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/team/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mirrored, namespace: images}
spec:
  nodeName: h3
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "mirrored.test/team/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: denied, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/secret/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: secret, namespace: images}
spec:
  nodeName: h2
  serviceAccountName: puller
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/secret/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: missing, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/team/busybox:2"}]
---
apiVersion: v1
kind: Pod
metadata: {name: volume, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: localhost/busybox:1
    command: [sleep, "600"]
    volumeMounts: [{name: app, mountPath: /app}, {name: app, mountPath: /one, subPath: bin}]
  volumes: [{name: app, image: {reference: "10.77.0.100:5000/secret/busybox:1"}}]
  imagePullSecrets: [{name: login}]
`

// policyPods begin while the registry is down, and has other things than they know.
const policyPods = `apiVersion: v1
kind: Pod
metadata: {name: if-not-present, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/team/busybox:1", imagePullPolicy: IfNotPresent, command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: never, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: here, image: "10.77.0.100:5000/team/busybox:1", imagePullPolicy: Never, command: [sleep, "600"]}
  - {name: not-here, image: "10.77.0.100:5000/team/other:1", imagePullPolicy: Never, command: [sleep, "600"]}
---
apiVersion: v1
kind: Pod
metadata: {name: always, namespace: images}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "10.77.0.100:5000/team/busybox:1", imagePullPolicy: Always, command: [sleep, "600"]}]
`

// serveImages runs a registry in the client's host until the test ends, or stop is called.
func serveImages(t *testing.T, images ...string) (stop func()) {
	t.Helper()
	stop = background(t, "client", append([]string{shared.Bin + "/lab", "registry", "--private", "secret/=u:p"}, images...)...)
	eventually(t, patience, func() error {
		_, err := shared.Run(t.Context(), "h1", shared.Bin+"/hello", "get", "http://10.77.0.100:5000/nothing")
		if err != nil && !strings.Contains(err.Error(), "404") {
			return err
		}
		return nil
	})
	return stop
}

// Images from a registry: with and without a login, mirrored, by digest, as a volume, and by
// each pull policy; and what is said of those that cannot be had.
func TestImages(t *testing.T) {
	stop := serveImages(t, "team/busybox:1="+shared.Bin+"/busybox.tar", "secret/busybox:1="+shared.Bin+"/busybox.tar")
	manifest := filepath.Join(t.TempDir(), "images.yaml")
	if err := os.WriteFile(manifest, []byte(imagePods), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery create namespace images")
	defer sh(t, "h1", "rookery delete namespace images")
	sh(t, "h1", "rookery -n images create secret docker-registry login --docker-server=10.77.0.100:5000 --docker-username=u --docker-password=p")
	sh(t, "h1", "rookery -n images create serviceaccount puller")
	must(t, "h1", "rookery", "-n", "images", "patch", "serviceaccount", "puller", "-p", `{"imagePullSecrets":[{"name":"login"}]}`)
	sh(t, "h1", "rookery apply -f "+manifest)
	sh(t, "h1", "rookery -n images wait --for=condition=Ready pod/open pod/mirrored pod/secret pod/volume --timeout=90s")
	contains(t, "h1", []string{"Pulling", `Successfully pulled image "10.77.0.100:5000/team/busybox:1" in`, "including waiting). Image size:"}, strings.Fields("rookery -n images events --for pod/open")...)

	waiting := func(pod, reason, message string) {
		t.Helper()
		out := contains(t, "h3", []string{reason, message}, "rookery", "-n", "images", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
		contains(t, "h3", []string{"Failed to pull image", message}, "rookery", "-n", "images", "events", "--for", "pod/"+pod)
		t.Logf("%s: %s", pod, out)
	}
	waiting("missing", "ImagePullBackOff", "manifest unknown")
	// It is on the peer by now, for who has the login.
	waiting("denied", "ImagePullBackOff", "unauthorized")

	// The status names the digest, and by that it can be had.
	id := sh(t, "h1", "rookery -n images get pod open -o jsonpath={.status.containerStatuses[0].imageID}")
	if !strings.HasPrefix(id, "10.77.0.100:5000/team/busybox@sha256:") {
		t.Errorf("imageID is %q", id)
	}
	sh(t, "h1", "rookery -n images run digest --image="+id+" --restart=Never --command -- echo here")
	contains(t, "h2", []string{"here"}, strings.Fields("rookery -n images logs digest")...)
	contains(t, "h1", []string{"10.77.0.100:5000/team/busybox:1"}, "rookery", "get", "node", "h2", "-o", "jsonpath={.status.images}")

	if out := sh(t, "h3", "rookery -n images exec volume -- ls /app/bin/busybox /one/busybox"); out != "/app/bin/busybox\n/one/busybox\n" {
		t.Errorf("the volume has %q", out)
	}
	if out := refused(t, "h3", strings.Fields("rookery -n images exec volume -- touch /app/x")...); !strings.Contains(out, "Read-only file system") {
		t.Errorf("writing to it: %s", out)
	}
	if out := refused(t, "h3", strings.Fields("rookery -n images exec volume -- /app/bin/busybox true")...); !strings.Contains(strings.ToLower(out), "permission denied") {
		t.Errorf("running a program of it: %s", out)
	}

	// When the registry is asked is the pod's policy: here it is down at first, and then the tag
	// has moved to another image.
	stop()
	policies := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(policies, []byte(policyPods), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery apply -f "+policies)
	sh(t, "h1", "rookery -n images wait --for=condition=Ready pod/if-not-present --timeout=90s")
	contains(t, "h1", []string{"ErrImageNeverPull", `Container image \"10.77.0.100:5000/team/other:1\" is not present with pull policy of Never`, "startedAt"},
		"rookery", "-n", "images", "get", "pod", "never", "-o", "jsonpath={.status.containerStatuses[*].state}")
	contains(t, "h1", []string{"ErrImagePull", "connection refused"}, "rookery", "-n", "images", "get", "pod", "always", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
	moved := filepath.Join(t.TempDir(), "moved.tar")
	sh(t, "h1", shared.Bin+"/lab image --name localhost/busybox:1 --file /bin/busybox=/bin/busybox --file /moved=/etc/hostname --applets /bin/busybox "+moved)
	serveImages(t, "team/busybox:1="+moved)
	sh(t, "h1", "rookery -n images wait --for=condition=Ready pod/always --timeout=120s")
	sh(t, "h3", "rookery -n images exec always -- test -f /moved")
	imageOf := func(pod string) string {
		return sh(t, "h1", "rookery -n images get pod "+pod+" -o jsonpath={.status.containerStatuses[0].imageID}")
	}
	if was, is := imageOf("if-not-present"), imageOf("always"); was != id || is == id || !strings.HasPrefix(is, "10.77.0.100:5000/team/busybox@sha256:") {
		t.Errorf("the images are %q and, always pulled, %q; before the tag moved it was %q", was, is, id)
	}
}

const classPods = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: wrapped}
handler: wrapped
overhead: {podFixed: {cpu: 50m}}
scheduling: {nodeSelector: {kubernetes.io/hostname: h2}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: unknown}
handler: nosuch
---
apiVersion: v1
kind: Pod
metadata: {name: wrapped, namespace: hello}
spec:
  runtimeClassName: wrapped
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "localhost/busybox:1", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: unknown, namespace: hello}
spec:
  runtimeClassName: unknown
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "localhost/busybox:1", command: [sleep, "600"]}]
`

// A RuntimeClass chooses the OCI runtime, the peer, and what the scheduler adds; one that no
// peer knows is said to be so.
func TestRuntimeClass(t *testing.T) {
	dir := shared.HostDir("h2")
	background(t, "h2", append(append([]string{"podman"}, shared.PodmanArgs("h2")...), "--runtime", "wrapped", "system", "service", "-t", "0", "unix://"+dir+"/wrapped.sock")...)
	manifest := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(manifest, []byte(classPods), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery apply -f "+manifest)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+manifest)
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/wrapped --timeout=60s")
	if out := sh(t, "h1", "rookery -n hello get pod wrapped -o jsonpath={.spec.nodeName}{.spec.overhead.cpu}"); out != "h250m" {
		t.Errorf("peer and overhead: %q", out)
	}
	id := strings.TrimPrefix(sh(t, "h1", "rookery -n hello get pod wrapped -o jsonpath={.status.containerStatuses[0].containerID}"), "podman://")
	calls, err := os.ReadFile(dir + "/wrapped.log")
	if err != nil || !strings.Contains(string(calls), "start "+id) {
		t.Errorf("the other runtime was called with %q %v", calls, err)
	}
	sh(t, "h3", "rookery -n hello exec wrapped -- true")
	contains(t, "h1", []string{"FailedCreatePodSandBox", `failed to get sandbox runtime: no runtime for "nosuch" is configured`}, strings.Fields("rookery -n hello events --for pod/unknown")...)
	if out := sh(t, "h1", "rookery -n hello get pod unknown -o jsonpath={.status.containerStatuses[0].state.waiting.reason}"); out != "ContainerCreating" {
		t.Errorf("it waits as %q", out)
	}
	contains(t, "h1", []string{"False"}, "rookery", "-n", "hello", "get", "pod", "unknown", "-o", "jsonpath="+sandboxReady)
}
