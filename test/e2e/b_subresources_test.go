package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plain is a pod whose image has what a debugger has, so that what an ephemeral
// container sees is what is special about it. It serves on its loopback only.
const plain = `apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: hello, labels: {app: plain}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: localhost/busybox:1
    command: [/bin/sh, -c, 'echo page > /index.html; httpd -f -p 8080 & while :; do sleep 1; done']
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 100m, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: hello}
spec: {selector: {app: plain}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: plain, namespace: hello}
spec: {minAvailable: 1, selector: {matchLabels: {app: plain}}}
`

// contains runs a command in a host until its output has all of these, and returns the output.
func contains(t *testing.T, host string, want []string, argv ...string) string {
	t.Helper()
	var out string
	eventually(t, 30*time.Second, func() error {
		var err error
		out, err = shared.Run(t.Context(), host, argv...)
		for _, w := range want {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("%v printed %q, want %q", argv, out, w)
			}
		}
		return err
	})
	return out
}

// What is asked of one peer about a pod of another: streams by SPDY and by WebSocket,
// proxies, an ephemeral container, other resources, an eviction.
func TestSubresourcesThroughAnotherPeer(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "plain.yaml")
	if err := os.WriteFile(manifest, []byte(strings.ReplaceAll(plain, "NODE", "h2")), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery apply -f "+manifest)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+manifest)
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/plain --timeout=60s")

	for name, spdy := range map[string]string{"WebSocket": "true", "SPDY": "false"} {
		t.Run(name, func(t *testing.T) {
			env := "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=" + spdy + " KUBECTL_PORT_FORWARD_WEBSOCKETS=" + spdy + " "
			if out := must(t, "h3", "sh", "-c", "echo in | "+env+"rookery -n hello exec -i plain -- cat"); out != "in\n" {
				t.Errorf("exec printed %q", out)
			}
			contains(t, "h3", []string{"page"}, "sh", "-c", env+"rookery -n hello port-forward pod/plain 18080:8080 >/dev/null & pid=$!; sleep 2; "+
				shared.Bin+"/hello get http://127.0.0.1:18080/; code=$?; kill $pid; exit $code")
		})
	}
	contains(t, "h3", []string{"page"}, strings.Fields("rookery get --raw /api/v1/namespaces/hello/pods/plain:8080/proxy/")...)
	contains(t, "h1", []string{"page"}, strings.Fields("rookery get --raw /api/v1/namespaces/hello/services/plain:http/proxy/")...)

	t.Run("node proxy", func(t *testing.T) {
		at := "rookery get --raw /api/v1/nodes/h2/proxy"
		contains(t, "h3", []string{"ok"}, strings.Fields(at+"/healthz")...)
		contains(t, "h3", []string{`"name":"plain"`}, strings.Fields(at+"/pods")...)
		contains(t, "h3", []string{"go_goroutines"}, strings.Fields(at+"/metrics")...)
		contains(t, "h3", []string{`container_memory_working_set_bytes{container="web",namespace="hello",pod="plain"}`}, strings.Fields(at+"/metrics/resource")...)
		contains(t, "h3", []string{`"nodeName":"h2"`, `"name":"plain"`, `"workingSetBytes"`}, strings.Fields(at+"/stats/summary")...)
		sh(t, "h3", at+"/containerLogs/hello/plain/web")
		for _, path := range []string{"/rookery/v1/status", "/api/v1/secrets", "/configz"} {
			out := refused(t, "h3", strings.Fields(at+path)...)
			if !strings.Contains(out, "the agent of node h2 has no "+path) && !strings.Contains(out, "could not find the requested resource") {
				t.Errorf("%s: %s", path, out)
			}
		}
	})

	t.Run("debug", func(t *testing.T) {
		must(t, "h3", "rookery", "-n", "hello", "debug", "plain", "-c", "look", "--image=localhost/busybox:1", "--target=web", "--", "/bin/sh", "-c", "ps; echo looked; sleep 600")
		contains(t, "h3", []string{"httpd -f", "looked"}, strings.Fields("rookery -n hello logs plain -c look")...)
		contains(t, "h1", []string{"true"}, strings.Fields(`rookery -n hello get pod plain -o jsonpath={.status.containerStatuses[0].ready}`)...)
		contains(t, "h1", []string{"startedAt"}, strings.Fields(`rookery -n hello get pod plain -o jsonpath={.status.ephemeralContainerStatuses[0].state.running}`)...)
		if out := must(t, "h1", "sh", "-c", "rookery -n hello exec plain -c look -- cat /proc/1/root/index.html"); out != "page\n" {
			t.Errorf("the target's files are %q", out)
		}
	})

	t.Run("resize", func(t *testing.T) {
		resize := func(limits string) {
			t.Helper()
			must(t, "h3", "rookery", "-n", "hello", "patch", "pod", "plain", "--subresource=resize", "-p",
				`{"spec":{"containers":[{"name":"web","resources":{"limits":`+limits+`}}]}}`)
		}
		type resized struct {
			Status struct {
				ContainerStatuses []struct {
					RestartCount int
					Resources    struct{ Limits struct{ CPU, Memory string } }
				}
			}
		}
		read := func() (r resized) {
			t.Helper()
			if err := json.Unmarshal([]byte(sh(t, "h1", "rookery -n hello get pod plain -o json")), &r); err != nil {
				t.Fatal(err)
			}
			return r
		}
		resize(`{"cpu":"200m","memory":"96Mi"}`)
		eventually(t, 30*time.Second, func() error {
			r := read()
			if s := r.Status.ContainerStatuses[0]; s.Resources.Limits.CPU != "200m" || s.Resources.Limits.Memory != "96Mi" || s.RestartCount != 0 {
				return fmt.Errorf("status is %+v", r.Status)
			}
			return nil
		})
		// The container's own control group says the same.
		limit := must(t, "h1", "sh", "-c", "rookery -n hello exec plain -c web -- sh -c 'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true'")
		if strings.TrimSpace(limit) != fmt.Sprint(96<<20) {
			t.Errorf("the memory limit of the container is %q", limit)
		}
		out := refused(t, "h3", "rookery", "-n", "hello", "patch", "pod", "plain", "--subresource=resize", "-p",
			`{"spec":{"containers":[{"name":"web","resources":{"requests":{"memory":"900Gi"},"limits":{"memory":"900Gi"}}}]}}`)
		if !strings.Contains(out, "enough allocatable resources") {
			t.Errorf("more than the machine has: %s", out)
		}
	})

	t.Run("eviction", func(t *testing.T) {
		eviction := filepath.Join(t.TempDir(), "eviction.json")
		if err := os.WriteFile(eviction, []byte(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"plain","namespace":"hello"}}`), 0o644); err != nil {
			t.Fatal(err)
		}
		evict := strings.Fields("rookery create --raw /api/v1/namespaces/hello/pods/plain/eviction -f " + eviction)
		if out := refused(t, "h3", evict...); !strings.Contains(out, "disruption budget") {
			t.Errorf("against the budget: %s", out)
		}
		sh(t, "h1", "rookery -n hello delete pdb plain")
		eventually(t, 30*time.Second, func() error {
			_, err := shared.Run(t.Context(), "h3", evict...)
			return err
		})
		eventually(t, 30*time.Second, func() error {
			_, err := shared.Run(t.Context(), "h3", "sh", "-c", "! rookery -n hello get pod plain")
			return err
		})
	})
}

// A Service's address is an object, the range is one, and the API says how it is.
func TestAddressesAndComponents(t *testing.T) {
	ip := sh(t, "h1", "rookery -n hello get service hello -o jsonpath={.spec.clusterIP}")
	contains(t, "h3", []string{"services/hello/hello"}, "rookery", "get", "ipaddress", ip)
	contains(t, "h2", []string{"kubernetes", "True"}, "rookery", "get", "servicecidrs", "-o", `custom-columns=NAME:.metadata.name,READY:.status.conditions[0].status`)
	contains(t, "h2", []string{"podman", "quorum", "Healthy"}, "rookery", "get", "componentstatuses")
	contains(t, "h2", []string{"kubernetes.io/kube-apiserver-serving"}, "rookery", "get", "clustertrustbundles", "-o", "wide")
}
