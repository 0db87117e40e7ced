package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
			eventually(t, time.Minute, func() error {
				if err := get(from.Metadata.Name); (err == nil) != open {
					return fmt.Errorf("%s: from %s on %s: %v", what, from.Metadata.Name, from.Spec.NodeName, err)
				}
				return nil
			})
		}
	}
	expect("before", true)
	apply("{podSelector: {}, policyTypes: [Ingress]}")
	t.Cleanup(func() {
		if out, err := shared.Run(context.Background(), "h1", "rookery", "-n", "hello", "delete", "networkpolicy", "closed", "--ignore-not-found"); err != nil {
			t.Error(err, out)
		}
	})
	expect("closed", false)
	// They are probed all the time, and new ones become Ready only by their probes.
	must(t, "h1", "rookery", "-n", "hello", "delete", "pod", all[8].Metadata.Name, "--wait")
	all = scale(t, "h1", 9)
	to = all[0]
	apply("{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}")
	expect("opened for the pods of the namespace", true)
	must(t, "h3", "rookery", "-n", "hello", "delete", "networkpolicy", "closed")
	expect("afterwards", true)
	eventually(t, time.Minute, func() error {
		if out := sh(t, "h1", "nft list table ip rookery"); strings.Contains(out, "policy-") {
			return fmt.Errorf("left behind: %s", out)
		}
		return nil
	})
}
