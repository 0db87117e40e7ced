package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const serviceURL = "http://hello.hello.svc.cluster.local/"

// Nine replicas are spread over three peers, and answer by name, by ClusterIP
// and by NodePort, from a pod on each peer, from each peer and from the LAN.
func TestServiceAnswersFromEverywhere(t *testing.T) {
	nodes := sh(t, "h1", "rookery get nodes --no-headers")
	if n := strings.Count(nodes, " Ready "); n != 3 {
		t.Fatalf("%d nodes are Ready:\n%s", n, nodes)
	}
	all := scale(t, "h1", 9)
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
// favoured: of 200 requests a pod gets 22 on average, with a deviation of 4.4.
func nine(t *testing.T, where string, r report) {
	t.Helper()
	if r.Failed > 0 || len(r.Pods) != 9 {
		t.Errorf("%s: %d of %d requests failed, %d pods answered; %v", where, r.Failed, r.Sent, len(r.Pods), r.Errors)
	}
	for pod, n := range r.Pods {
		if share := float64(n) / float64(r.Sent); share > 0.26 {
			t.Errorf("%s: %s answered %d of %d", where, pod, n, r.Sent)
		}
	}
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
	eventually(t, time.Minute, func() error {
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
		eventually(t, time.Minute, func() error {
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
