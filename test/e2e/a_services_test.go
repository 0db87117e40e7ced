package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

const serviceURL = "http://hello.hello.svc.cluster.local/"

// Nine replicas are spread over three peers, and answer by name, by ClusterIP
// and by NodePort, from a pod on each peer, from each peer and from the LAN.
func TestServiceAnswersFromEverywhere(t *testing.T) {
	allReady(t, patience)
	all := spread(t, "h1")
	on := map[string]string{} // a pod on each peer
	count := map[string]int{}
	for _, p := range all {
		on[p.Spec.NodeName] = p.Metadata.Name
		count[p.Spec.NodeName]++
	}
	for _, h := range shared.Peers() {
		if count[h.Name] != 3 {
			t.Errorf("%s runs %d of 9 pods: %v", h.Name, count[h.Name], count)
		}
	}
	ip := strings.TrimSpace(sh(t, "h1", "rookery -n hello get service hello -o jsonpath={.spec.clusterIP}"))
	for _, h := range shared.Peers() {
		for _, url := range []string{serviceURL, "http://" + ip + "/", "http://" + h.IP + ":30080/"} {
			nine(t, "from host "+h.Name, startLoad(t, h.Name, url, 100, 2*time.Second)())
		}
		for _, url := range []string{serviceURL, "http://" + ip + "/", "http://hello/"} {
			out := must(t, h.Name, "rookery", "-n", "hello", "exec", on[h.Name], "-c", "hello", "--", "/hello", "load", "-rate", "100", "-for", "2s", url)
			nine(t, "from a pod on "+h.Name, decode(t, out))
		}
		nine(t, "from the LAN to "+h.Name, startLoad(t, "client", "http://"+h.IP+":30080/", 100, 2*time.Second)())
	}
	if out := must(t, "h2", "rookery", "-n", "hello", "exec", on["h1"], "-c", "hello", "--", "/hello", "get", "http://hello:9090/counts"); !strings.Contains(out, `"requests"`) {
		t.Errorf("the sidecar answered %q", out)
	}
}

// nine wants every answer good, all nine pods among them, and none of them
// favoured: of 200 requests a pod gets 22 on average, with a deviation of 4.4. A machine
// that sends much fewer is too busy to tell.
func nine(t *testing.T, where string, r report) {
	t.Helper()
	labtest.NoneLost(t, where, r.Sent, r.Failed, r.Errors)
	if r.Sent < 100 {
		t.Logf("%s: only %d requests were sent", where, r.Sent)
		return
	}
	if len(r.Pods) != 9 {
		t.Errorf("%s: %d pods answered %d requests", where, len(r.Pods), r.Sent)
	}
	for pod, n := range r.Pods {
		if share := float64(n) / float64(r.Sent); share > 0.26 {
			t.Errorf("%s: %s answered %d of %d", where, pod, n, r.Sent)
		}
	}
}

// With trafficDistribution PreferClose connections stay in the zone of the peer that they come
// from, as long as it has an endpoint.
func TestTrafficStaysInItsZone(t *testing.T) {
	all := scale(t, "h1", 9)
	here := map[string]map[string]bool{}
	for _, h := range shared.Peers() {
		here[h.Name] = map[string]bool{}
		sh(t, "h1", "rookery label node "+h.Name+" topology.kubernetes.io/zone="+h.Name+"-zone")
	}
	for _, p := range all {
		here[p.Spec.NodeName][p.Metadata.Name] = true
	}
	patch := func(distribution string) {
		must(t, "h2", "rookery", "-n", "hello", "patch", "service", "hello", "-p", `{"spec":{"trafficDistribution":`+distribution+`}}`)
	}
	t.Cleanup(func() {
		for _, h := range shared.Peers() {
			if _, err := shared.Run(context.Background(), "h1", "rookery", "label", "node", h.Name, "topology.kubernetes.io/zone-"); err != nil {
				t.Error(err)
			}
		}
	})
	patch(`"PreferClose"`)
	for _, h := range shared.Peers() {
		eventually(t, patience, func() error {
			r := startLoad(t, h.Name, serviceURL, 100, time.Second)()
			for pod, n := range r.Pods {
				if !here[h.Name][pod] {
					return fmt.Errorf("%d of %d requests from %s went to %s", n, r.Sent, h.Name, pod)
				}
			}
			if r.Failed > 0 {
				return fmt.Errorf("%d of %d requests from %s failed: %v", r.Failed, r.Sent, h.Name, r.Errors)
			}
			return nil
		})
	}
	patch("null")
	eventually(t, patience, func() error {
		if r := startLoad(t, "h3", serviceURL, 100, time.Second)(); len(r.Pods) != 9 {
			return fmt.Errorf("%d pods answer, not all 9", len(r.Pods))
		}
		return nil
	})
}

// A pod reaches another on a different peer by its own address, and is seen there with its own.
func TestPodsReachEachOtherUntranslated(t *testing.T) {
	all := scale(t, "h1", 9)
	from := all[0]
	for _, to := range all[1:] {
		if to.Spec.NodeName == from.Spec.NodeName {
			continue
		}
		out := must(t, "h1", "rookery", "-n", "hello", "exec", from.Metadata.Name, "-c", "hello", "--", "/hello", "get", fmt.Sprintf("http://%s:8080/", to.Status.PodIP))
		if !strings.Contains(out, "from pod "+to.Metadata.Name) {
			t.Errorf("asked %s, got %q", to.Metadata.Name, out)
		}
		out = must(t, "h1", "rookery", "-n", "hello", "exec", from.Metadata.Name, "-c", "hello", "--", "/hello", "get", fmt.Sprintf("http://%s:8080/whoami", to.Status.PodIP))
		if got := strings.TrimSpace(out); got != from.Status.PodIP {
			t.Errorf("%s saw the request come from %s, it came from %s", to.Metadata.Name, got, from.Status.PodIP)
		}
	}
}

// `rookery net` shows where a Service's connections go, and tries every way there is.
func TestNetShowsWhereConnectionsGo(t *testing.T) {
	scale(t, "h1", 9)
	out := sh(t, "h2", "rookery net hello/hello")
	if n := strings.Count(out, "yes"); n != 18 || strings.Contains(out, "no:") { // two ports
		t.Errorf("of 9 pods with two ports %d get connections:\n%s", n, out)
	}
	unready(t)
	eventually(t, patience, func() error {
		out, err := shared.Run(t.Context(), "h3", "rookery", "net", "check")
		if err != nil || strings.Contains(out, "NO") {
			return fmt.Errorf("%v:\n%s", err, out)
		}
		for _, from := range []string{"h1", "h2", "h3"} {
			// Two peers, a pod on each of three, a Service and a name; and what the paths to the peers carry.
			if n := strings.Count("\n"+out, "\n"+from+" "); n != 9 {
				return fmt.Errorf("%s tried %d ways, want 9:\n%s", from, n, out)
			}
			if n := strings.Count("\n"+out, "\na pod on "+from+" "); n != 7 {
				return fmt.Errorf("a pod on %s tried %d ways, want 7:\n%s", from, n, out)
			}
		}
		return nil
	})
	// Nothing is left of the pods that it was tried from.
	for _, h := range shared.Peers() {
		eventually(t, patience, func() error {
			all, err := api(t).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + h.Name})
			if err != nil {
				return err
			}
			pods := 0
			for _, p := range all.Items {
				if !p.Spec.HostNetwork {
					pods++
				}
			}
			if out := sh(t, h.Name, "ip -o link show type veth"); strings.Count(out, ": rk") != pods {
				return fmt.Errorf("%s has %d pods and these devices:\n%s", h.Name, pods, out)
			}
			return nil
		})
	}
	metrics := sh(t, "h1", "rookery get --raw /metrics")
	for _, want := range []string{`rookery_network_backend{backend="wireguard"} 1`, "rookery_network_pods ", "rookery_network_announced ",
		`rookery_rules_seconds_count{family="ip",section="services"}`, `rookery_dns_answers_total{client="inside"`} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	if out := refused(t, "h1", "rookery", "net", "nothing", "-n", "hello"); !strings.Contains(out, `"nothing" not found`) {
		t.Errorf("a Service that is not there: %s", out)
	}
}

// unready wants `rookery net` to say of a pod that is not ready that it gets no connections, and
// of one whose readiness does not count that it gets some, which it does.
func unready(t *testing.T) {
	t.Helper()
	client, ctx := api(t).CoreV1(), t.Context()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "unready", Labels: map[string]string{"app": "unready"}}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To(int64(0)), ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "example.com/never"}},
		Containers: []corev1.Container{{Name: "c", Image: "localhost/hello:1", Args: []string{"serve"}}},
	}}
	if _, err := client.Pods("hello").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Pods("hello").Delete(context.Background(), pod.Name, metav1.DeleteOptions{}) })
	for name, published := range map[string]bool{"held": false, "published": true} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Selector: pod.Labels, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}}, PublishNotReadyAddresses: published,
		}}
		if _, err := client.Services("hello").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Services("hello").Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	eventually(t, 2*time.Minute, func() error {
		if _, err := shared.Run(ctx, "h1", shared.Bin+"/hello", "get", "http://published.hello.svc.cluster.local:8080/"); err != nil {
			return err
		}
		for name, want := range map[string]string{"held": "no: not ready", "published": "yes"} {
			out, err := shared.Run(ctx, "h2", "rookery", "net", "hello/"+name)
			if err != nil || !strings.Contains(out, want) {
				return fmt.Errorf("net %s, want %q: %v %s", name, want, err, out)
			}
		}
		return nil
	})
	if out := refused(t, "h1", shared.Bin+"/hello", "get", "http://held.hello.svc.cluster.local:8080/"); !strings.Contains(out, "refused") {
		t.Errorf("a Service whose only pod is not ready: %s", out)
	}
}
