package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// plain is a pod whose image has what a debugger has, so that what an ephemeral
// container sees is what is special about it. It serves on its loopback only.
const plain = `apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: hello, labels: {app: plain}, annotations: {kubectl.kubernetes.io/default-container: web}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: localhost/busybox:1
    command: [/bin/sh, -c, 'echo page > /index.html; httpd -f -p 8080 & while :; do sleep 1; done']
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 100m, memory: 64Mi}}
  - name: anew
    image: localhost/busybox:1
    command: [/bin/sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.2; done']
    resources: {limits: {cpu: 100m}}
    resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}]
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
	eventually(t, patience, func() error {
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
			contains(t, "h3", []string{"page"}, "sh", "-c", env+"rookery -n hello port-forward pod/plain 18080:8080 >/dev/null & pid=$!; "+
				"for i in $(seq 30); do "+shared.Bin+"/hello get http://127.0.0.1:18080/ && break; sleep 1; done; kill $pid")
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
		must(t, "h3", "rookery", "-n", "hello", "patch", "pod", "plain", "--subresource=resize", "-p",
			`{"spec":{"containers":[{"name":"web","resources":{"limits":{"cpu":"200m","memory":"96Mi"}}},{"name":"anew","resources":{"requests":{"cpu":"150m"},"limits":{"cpu":"150m"}}}]}}`)
		type container struct {
			RestartCount int
			State        struct{ Running *struct{} }
			Resources    struct{ Limits struct{ CPU, Memory string } }
		}
		eventually(t, patience, func() error {
			var r struct {
				Status struct{ ContainerStatuses []container }
			}
			if err := json.Unmarshal([]byte(sh(t, "h1", "rookery -n hello get pod plain -o json")), &r); err != nil {
				t.Fatal(err)
			}
			web, anew := r.Status.ContainerStatuses[0], r.Status.ContainerStatuses[1]
			if web.Resources.Limits.CPU != "200m" || web.Resources.Limits.Memory != "96Mi" || web.RestartCount != 0 ||
				anew.Resources.Limits.CPU != "150m" || anew.RestartCount != 1 || anew.State.Running == nil {
				return fmt.Errorf("status is %+v", r.Status)
			}
			return nil
		})
		// The containers' own control groups say the same.
		for _, tt := range []struct{ container, files, want string }{
			{"web", "memory.max memory/memory.limit_in_bytes", fmt.Sprint(96 << 20)},
			{"web", "cpu.max cpu/cpu.cfs_quota_us", "20000"},
			{"anew", "cpu.max cpu/cpu.cfs_quota_us", "15000"},
		} {
			limit := must(t, "h1", "rookery", "-n", "hello", "exec", "plain", "-c", tt.container, "--", "sh", "-c", "cd /sys/fs/cgroup; cat "+tt.files+" 2>/dev/null; true")
			if strings.TrimSuffix(strings.TrimSpace(limit), " 100000") != tt.want { // version 2 has the period too
				t.Errorf("of %s the container %s has %q, want %s", tt.files, tt.container, limit, tt.want)
			}
		}
		out := refused(t, "h3", "rookery", "-n", "hello", "patch", "pod", "plain", "--subresource=resize", "-p",
			`{"spec":{"containers":[{"name":"web","resources":{"requests":{"memory":"900Gi"},"limits":{"memory":"900Gi"}}}]}}`)
		if !strings.Contains(out, "enough allocatable resources") {
			t.Errorf("more than the machine has: %s", out)
		}
	})

	t.Run("resize that has to wait", resizeThatWaits)

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

// beside takes room on the peer of the pod plain.
const beside = `apiVersion: v1
kind: Pod
metadata: {name: beside, namespace: hello}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "localhost/busybox:1", command: [sleep, "600"], resources: {requests: {cpu: 100m}}}]
`

// resizeThatWaits: no limit is set that would kill the container at once, and what others have on
// the machine is waited for. (What it never has is refused by the API.)
func resizeThatWaits(t *testing.T) {
	resize := func(resources string) {
		t.Helper()
		must(t, "h3", "rookery", "-n", "hello", "patch", "pod", "plain", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"web","resources":`+resources+`}]}}`)
	}
	// says waits for the CPU and memory that the container has, and for what the pod says of a resize.
	says := func(cpu, memory, condition string) {
		t.Helper()
		contains(t, "h1", []string{fmt.Sprintf("<%s %s 0> <%s", cpu, memory, condition)}, "rookery", "-n", "hello", "get", "pod", "plain", "-o",
			`jsonpath=<{.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}> `+
				`<{range .status.conditions[?(@.type=="PodResizeInProgress")]}{.type} {.reason} {.message}{end}{range .status.conditions[?(@.type=="PodResizePending")]}{.type} {.reason} {.message}{end}>`)
	}
	says("200m", "96Mi", ">")

	must(t, "h3", "rookery", "-n", "hello", "exec", "plain", "-c", "web", "--", "dd", "if=/dev/zero", "of=/dev/shm/taken", "bs=1M", "count=40")
	resize(`{"limits":{"memory":"32Mi"}}`)
	says("200m", "96Mi", "PodResizeInProgress Error attempting to set memory limit (33554432) below current usage (")
	resize(`{"limits":{"memory":"80Mi"}}`)
	says("200m", "80Mi", ">")

	file := manifest(t, beside)
	sh(t, "h1", "rookery apply -f "+file)
	t.Cleanup(func() {
		if out, err := shared.Run(context.Background(), "h1", "rookery", "delete", "--ignore-not-found", "-f", file); err != nil {
			t.Error(err, out)
		}
	})
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/beside --timeout=60s")
	client, ctx := api(t), t.Context()
	// What fits only without the pod beside it.
	var most *resource.Quantity
	node, err := client.CoreV1().Nodes().Get(ctx, "h2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=h2,status.phase!=Succeeded,status.phase!=Failed"})
		if err != nil {
			return err
		}
		free := node.Status.Allocatable.Cpu().MilliValue() + 50
		for _, p := range list.Items {
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s is still there", p.Name)
			}
			if p.Name == "plain" {
				p.Spec.Containers = p.Spec.Containers[1:]
			}
			requests := resourcehelper.PodRequests(&p, resourcehelper.PodResourcesOptions{})
			free -= requests.Cpu().MilliValue()
		}
		most = resource.NewMilliQuantity(free, resource.DecimalSI)
		return nil
	})
	resize(fmt.Sprintf(`{"requests":{"cpu":"%s"},"limits":{"cpu":"%s"}}`, most, most))
	says("200m", "80Mi", "PodResizePending Deferred Node didn't have enough resource: cpu>")
	sh(t, "h1", "rookery -n hello delete pod beside")
	sh(t, "h1", "rookery -n hello label pod plain looked=again") // or it is looked at half a minute later
	says(most.String(), "80Mi", ">")
	resize(`{"requests":{"cpu":"50m"},"limits":{"cpu":"200m"}}`)
	says("200m", "80Mi", ">")
}

// A Service's address is an object, the range is one, and the API says how it is.
func TestAddressesAndComponents(t *testing.T) {
	ip := sh(t, "h1", "rookery -n hello get service hello -o jsonpath={.spec.clusterIP}")
	contains(t, "h3", []string{"services/hello/hello"}, "rookery", "get", "ipaddress", ip)
	contains(t, "h2", []string{"kubernetes", "True"}, "rookery", "get", "servicecidrs", "-o", `custom-columns=NAME:.metadata.name,READY:.status.conditions[0].status`)
	contains(t, "h2", []string{"podman", "quorum", "Healthy"}, "rookery", "get", "componentstatuses")
	contains(t, "h2", []string{"kubernetes.io/kube-apiserver-serving"}, "rookery", "get", "clustertrustbundles", "-o", "wide")
}
