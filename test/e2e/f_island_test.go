package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// With two of three peers down the last one is an island: it shows what it
// knows, runs what it has, and refuses writes at once. With one peer back it
// heals by itself.
func TestIslandKeepsLiving(t *testing.T) {
	allReady(t, patience)
	all := spread(t, "h1")
	last, down := "h3", []string{"h1", "h2"}
	var mine pod
	for _, p := range all {
		if p.Spec.NodeName == last {
			mine = p
		}
	}
	for _, h := range down {
		if err := shared.Crash(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, h := range down {
			if err := shared.Start(context.Background(), h); err != nil && !strings.Contains(err.Error(), "runs already") {
				t.Error(err)
			}
		}
		allReady(t, patience)
		scale(t, "h3", 3)
		agree(t)
	}()
	// Whose lease ends knows that there is no quorum before gossip has missed everybody.
	eventually(t, patience, func() error {
		s, err := status(t.Context(), last)
		switch {
		case err == nil && s.Quorum:
			err = fmt.Errorf("the status still claims a quorum")
		case err == nil && !slices.Equal(s.Missing, down):
			err = fmt.Errorf("%v are missing, the status names %v", down, s.Missing)
		}
		return err
	})

	for _, line := range []string{"get pods", "logs " + mine.Metadata.Name + " -c hello", "exec " + mine.Metadata.Name + " -c hello -- /hello get http://127.0.0.1:8080/"} {
		out := sh(t, last, "rookery -n hello "+line)
		if !strings.Contains(out, "Warning: ") || !strings.Contains(out, "no quorum") {
			t.Errorf("%s gave no stale warning: %s", line, out)
		}
	}
	if out := sh(t, last, "rookery status"); !strings.Contains(out, "Missing: h1, h2") {
		t.Errorf("status does not say who is missing:\n%s", out)
	}

	began := time.Now()
	out := refused(t, last, "rookery", "-n", "hello", "create", "configmap", "island")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the write was refused only after %s", took)
	}
	if !strings.Contains(out, "h1") || !strings.Contains(out, "h2") {
		t.Errorf("the refusal does not say who is missing: %s", out)
	}

	// Only local pods are left, and they answer by name and through the Service.
	eventually(t, patience, func() error {
		r := startLoad(t, last, serviceURL, 50, time.Second)()
		if r.Failed > 0 {
			return fmt.Errorf("%d of %d requests failed: %v", r.Failed, r.Sent, r.Errors)
		}
		return nil
	})

	// A container that crashes is started again.
	sh(t, last, "rookery -n hello exec "+mine.Metadata.Name+" -c counts -- /hello get http://127.0.0.1:8080/")
	args := strings.Join(append([]string{"podman"}, shared.PodmanArgs(last)...), " ")
	id := sh(t, last, args+" ps -q --no-trunc --filter label=io.kubernetes.pod.name="+mine.Metadata.Name+" --filter label=io.kubernetes.container.name=hello")
	sh(t, last, args+" kill -s KILL "+strings.TrimSpace(id))
	eventually(t, 40*time.Second, func() error {
		_, err := shared.Run(t.Context(), last, "rookery", "-n", "hello", "exec", mine.Metadata.Name, "-c", "counts", "--", "/hello", "get", "http://127.0.0.1:8080/")
		return err
	})

	if err := shared.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, patience, func() error {
		_, err := shared.Run(t.Context(), last, "rookery", "-n", "hello", "create", "configmap", "mainland")
		if err != nil && strings.Contains(err.Error(), "already exists") {
			return nil // by a try that had no answer
		}
		return err
	})
	t.Logf("writes were back %.1fs after the second peer was started", took.Seconds())
	sh(t, last, "rookery -n hello delete configmap mainland")
}

// All peers lose their power and only one comes back: without quorum it boots its pods
// from what it has on disk.
func TestIslandBootsCold(t *testing.T) {
	allReady(t, patience)
	all := spread(t, "h1")
	last := "h3"
	wanted := map[string]bool{}
	name := ""
	for _, p := range all {
		if p.Spec.NodeName == last {
			wanted[p.Metadata.UID], name = true, p.Metadata.Name
		}
	}
	if len(wanted) == 0 {
		t.Fatalf("%s runs no pod", last)
	}
	for _, h := range shared.Peers() {
		if err := shared.Crash(t.Context(), h.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := shared.Start(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, h := range []string{"h1", "h2"} {
			if err := shared.Start(context.Background(), h); err != nil {
				t.Error(err)
			}
		}
		allReady(t, patience)
		scale(t, last, 3)
		agree(t)
	}()
	args := append([]string{"podman"}, shared.PodmanArgs(last)...)
	took := eventually(t, 90*time.Second, func() error {
		var running []struct{ Labels map[string]string }
		if err := shared.JSON(t.Context(), &running, last, append(args, "ps", "--format", "json", "--filter", "label=io.kubernetes.container.name=hello")...); err != nil {
			return err
		}
		for _, c := range running {
			if !wanted[c.Labels["io.kubernetes.pod.uid"]] {
				return fmt.Errorf("a pod runs that was not here: %v", c.Labels)
			}
		}
		if len(running) != len(wanted) {
			return fmt.Errorf("%d of %d pods run", len(running), len(wanted))
		}
		return nil
	})
	t.Logf("%d pods ran again %.1fs after the only peer had power", len(wanted), took.Seconds())
	eventually(t, 30*time.Second, func() error {
		out, err := shared.Run(t.Context(), last, "rookery", "-n", "hello", "exec", name, "-c", "hello", "--", "/hello", "get", "http://127.0.0.1:8080/")
		if err == nil && !strings.Contains(out, "no quorum") {
			err = fmt.Errorf("there is no warning that this is an island: %s", out)
		}
		return err
	})
}
