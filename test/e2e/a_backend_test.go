package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The network's backend changes while pods run: the Service answers over each, from every
// peer and from pods of every peer, and no pod is replaced.
func TestBackendChangesWhilePodsRun(t *testing.T) {
	before := scale(t, "h1", 9)
	defer use(t, "wireguard")
	from, to := before[0], before[1:]
	for to[0].Spec.NodeName == from.Spec.NodeName {
		to = to[1:]
	}
	const length = 35 * time.Second
	for _, backend := range []string{"vxlan", "direct", "wireguard"} {
		load := startReport(t, "h1", "rookery", "-n", "hello", "exec", from.Metadata.Name, "-c", "hello", "--", "/hello", "load", "-rate", "100", "-for", length.String(), "http://"+to[0].Status.PodIP+":8080/")
		began := time.Now()
		time.Sleep(time.Second) // the load runs before the change
		use(t, backend)
		if took := time.Since(began); took >= length {
			t.Errorf("to change to %s took %s, longer than requests were sent", backend, took)
		}
		r := load()
		between := r.LastFailure.Sub(r.FirstFailure)
		t.Logf("changed to %s: %d of %d requests from a pod on %s to one on %s failed, the last one %.1fs after the first", backend, r.Failed, r.Sent, from.Spec.NodeName, to[0].Spec.NodeName, between.Seconds())
		if between > 20*time.Second && r.Failed > 2 || // two: a pause of the machine, at any time
			len(r.Pods) != 1 {
			t.Errorf("changed to %s: requests failed for %s, %d of %d; %v", backend, between, r.Failed, r.Sent, r.Errors)
		}
		for _, p := range before[:3] {
			out := must(t, "h2", "rookery", "-n", "hello", "exec", p.Metadata.Name, "-c", "hello", "--", "/hello", "load", "-rate", "100", "-for", "2s", serviceURL)
			nine(t, fmt.Sprintf("over %s, from a pod on %s", backend, p.Spec.NodeName), decode(t, out))
		}
	}
	after := map[string]bool{}
	for _, p := range pods(t, "h1") {
		after[p.Metadata.Name] = true
	}
	for _, p := range before {
		if !after[p.Metadata.Name] {
			t.Errorf("pod %s is gone", p.Metadata.Name)
		}
	}
	if out := refused(t, "h1", "rookery", "net", "use", "pigeons"); !strings.Contains(out, "use wireguard, vxlan or direct") {
		t.Errorf("a backend that there is not: %q", out)
	}
}

// use changes the backend and waits until every peer has followed.
func use(t *testing.T, backend string) {
	t.Helper()
	must(t, "h1", "rookery", "net", "use", backend)
	eventually(t, 2*time.Minute, func() error {
		for _, h := range shared.Peers() {
			s, err := status(t.Context(), h.Name)
			if err != nil {
				return err
			}
			if s.Network != backend || s.Change != "" {
				return fmt.Errorf("%s uses %s and is to change to %q, not %s", h.Name, s.Network, s.Change, backend)
			}
		}
		return nil
	})
}
