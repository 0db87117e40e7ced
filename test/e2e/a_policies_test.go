package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A NetworkPolicy that is applied with kubectl's verbs cuts a pod off from the others on every
// peer, not from its probes; what it allows goes on.
func TestNetworkPolicyIsEnforcedOnEveryPeer(t *testing.T) {
	all := scale(t, "h1", 9)
	to := all[0]
	get := func(from string) error {
		_, err := shared.Run(t.Context(), "h1", "rookery", "-n", "hello", "exec", from, "-c", "hello", "--", "/hello", "get", fmt.Sprintf("http://%s:8080/", to.Status.PodIP))
		return err
	}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	apply := func(spec string) {
		t.Helper()
		text := "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: hello, name: closed}, spec: " + spec + "}\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		must(t, "h2", "rookery", "apply", "-f", file)
	}
	expect := func(what string, open bool) {
		t.Helper()
		for _, from := range all[1:] {
			eventually(t, patience, func() error {
				if err := get(from.Metadata.Name); (err == nil) != open {
					return fmt.Errorf("%s: from %s on %s: %v", what, from.Metadata.Name, from.Spec.NodeName, err)
				}
				return nil
			})
		}
	}
	expect("before", true)
	toldOnce := refusals(t, to.Spec.NodeName, "ingress", "network policies do not allow what a pod is sent", "hello/"+to.Metadata.Name)
	apply("{podSelector: {}, policyTypes: [Ingress]}")
	t.Cleanup(func() {
		if out, err := shared.Run(context.Background(), "h1", "rookery", "-n", "hello", "delete", "networkpolicy", "closed", "--ignore-not-found"); err != nil {
			t.Error(err, out)
		}
	})
	expect("closed", false)
	toldOnce(func() { _ = get(all[1].Metadata.Name) })
	// They are probed all the time, and new ones become Ready only by their probes.
	must(t, "h1", "rookery", "-n", "hello", "delete", "pod", all[8].Metadata.Name, "--wait")
	all = scale(t, "h1", 9)
	to = all[0]
	apply("{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}")
	expect("opened for the pods of the namespace", true)
	must(t, "h3", "rookery", "-n", "hello", "delete", "networkpolicy", "closed")
	expect("afterwards", true)
	inside(t, apply)
	eventually(t, patience, func() error {
		if out := sh(t, "h1", "nft list table ip rookery"); strings.Contains(out, "policy-") {
			return fmt.Errorf("left behind: %s", out)
		}
		return nil
	})
}

// inside cuts a pod off from the peer port of each machine and from the API, Services of
// other namespaces and pods, all of which it reaches before.
func inside(t *testing.T, apply func(spec string)) {
	t.Helper()
	const peer = "h2"
	pod := loader(t, peer)
	targets := map[string]string{ // and what is heard of it without a policy
		"https://10.77.0.1:6443/":        "certificate",
		"https://10.77.0.2:6443/":        "certificate", // its own machine
		"https://kubernetes.default/":    "certificate",
		"http://10.77.0.1:30080/":        "Hello from pod",
		"http://hello.hello/":            "Hello from pod",
		"http://hello.hello:9090/counts": "requests",
	}
	hear := func(word func(string) string) {
		t.Helper()
		for url, open := range targets {
			eventually(t, patience, func() error {
				out, err := shared.Run(t.Context(), peer, "rookery", "-n", "hello", "exec", pod, "--", "/hello", "get", url)
				if want := word(open); !strings.Contains(fmt.Sprint(out, err), want) {
					return fmt.Errorf("%s: %s %v, want %s", url, out, err, want)
				}
				return nil
			})
		}
	}
	hear(func(open string) string { return open })
	toldOnce := refusals(t, peer, "egress", "a pod sends what its network policies do not allow", "hello/"+pod)
	apply("{podSelector: {matchLabels: {app: loader}}, policyTypes: [Egress]}")
	closed := func() { hear(func(string) string { return "connection refused" }) }
	closed()
	toldOnce(closed)
	must(t, peer, "rookery", "-n", "hello", "delete", "networkpolicy", "closed")
	hear(func(open string) string { return open })
}

// refusals returns what wants a peer to count what it refuses for that reason, and to have said
// so of the pod, once since refusals was called. again has something refused.
func refusals(t *testing.T, peer, reason, message, pod string) (toldOnce func(again func())) {
	t.Helper()
	counter := regexp.MustCompile(`(?m)^rookery_network_refused_packets_total\{reason="` + reason + `"\} (\S+)$`)
	now := func() (packets float64, lines int) {
		t.Helper()
		found := counter.FindStringSubmatch(sh(t, peer, "rookery get --raw /metrics")) // asking makes it look
		if found == nil {
			t.Fatalf("%s does not count what it refuses for its %s", peer, reason)
		}
		packets, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(filepath.Join(shared.HostDir(peer), "rookery.log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, message) && strings.Contains(line, "pod="+pod+" ") {
				lines++
			}
		}
		return packets, lines
	}
	_, linesBefore := now()
	return func(again func()) {
		t.Helper()
		for range 2 { // the second time it says nothing
			before, _ := now()
			// What is refused before the peer knows whose address it is goes by the address.
			eventually(t, patience, func() error {
				again()
				packets, lines := now()
				if packets <= before || lines == 0 { // a test that is repeated finds the line of the last hour
					return fmt.Errorf("%s has counted %v packets, %v before, for its %s, and has said %d times that %s: %s", peer, packets, before, reason, lines, pod, message)
				}
				return nil
			})
			if _, lines := now(); lines > linesBefore+1 {
				t.Errorf("%s says %d times that %s: %s", peer, lines-linesBefore, pod, message)
			}
		}
	}
}
