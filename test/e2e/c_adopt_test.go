package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A daemon that comes back at once adopts its pods, their containers untouched, and removes
// those that were deleted meanwhile. That also holds for an upgrade: what it finds on disk
// is as the first version wrote it.
func TestRestartedDaemonAdoptsItsPods(t *testing.T) {
	allReady(t, patience)
	// However long a busy machine takes, the pods of a daemon that is away are not replaced.
	tolerations := func(list string) {
		scale(t, "h1", 0)
		must(t, "h1", "rookery", "-n", "hello", "patch", "deployment", "hello", "--type=merge", "-p", `{"spec":{"template":{"spec":{"tolerations":`+list+`}}}}`)
	}
	tolerations(`[{"operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]`)
	defer func() {
		tolerations("null")
		scale(t, "h1", 3)
	}()
	scale(t, "h1", 9)
	victim, other := "h2", "h3"
	containers := func() map[string][]string {
		found := map[string][]string{}
		for _, p := range pods(t, other) {
			if p.Spec.NodeName != victim {
				continue
			}
			for _, c := range p.Status.ContainerStatuses {
				found[p.Metadata.Name] = append(found[p.Metadata.Name], fmt.Sprintf("%s %s %d", c.Name, c.ContainerID, c.RestartCount))
			}
		}
		return found
	}
	before := containers()
	if len(before) < 2 {
		t.Fatalf("%s runs %d pods, this needs two", victim, len(before))
	}
	var deleted string
	for name := range before {
		deleted = name
	}
	if err := shared.Kill(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	downgradeState(t, victim)
	eventually(t, patience, func() error { // whose daemon was killed may have led
		_, err := shared.Run(t.Context(), other, "rookery", "-n", "hello", "delete", "pod", deleted, "--wait=false", "--ignore-not-found")
		return err
	})
	if err := shared.Start(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if all := pods(t, other); slices.ContainsFunc(all, func(p pod) bool { return p.Metadata.Name == deleted }) {
			return fmt.Errorf("%s is still there", deleted)
		}
		return nil
	})
	allReady(t, patience)
	nothingTwice(t, victim)
	after := containers()
	for name, want := range before {
		if name == deleted {
			continue
		}
		if !slices.Equal(after[name], want) {
			t.Errorf("%s: containers were %v, are %v", name, want, after[name])
		}
	}
}

// downgradeState leaves of what an agent keeps on disk what its first version kept: of a pod
// its sandbox and its containers' attempts, ends and backoff; of images nothing.
func downgradeState(t *testing.T, host string) {
	t.Helper()
	dir := filepath.Join(shared.HostDir(host), "rookery", "pods")
	files, err := filepath.Glob(filepath.Join(dir, "*", "state.json"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%s has the state of %d pods, this needs two: %v", host, len(files), err)
	}
	keep := func(m map[string]any, keys ...string) (dropped bool) {
		n := len(m)
		maps.DeleteFunc(m, func(key string, _ any) bool { return !slices.Contains(keys, key) })
		return len(m) < n
	}
	newer := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var state map[string]any
		if err := json.Unmarshal(data, &state); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if keep(state, "sandbox", "containers") {
			newer++
		}
		for _, c := range state["containers"].(map[string]any) {
			keep(c.(map[string]any), "attempt", "fresh", "ended", "last", "backoff", "at")
		}
		if data, err = json.Marshal(state); err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if newer < 2 {
		t.Fatalf("of %d pods the state of %d has what the first version did not write", len(files), newer)
	}
	if err := os.Remove(filepath.Join(dir, "images.json")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}
