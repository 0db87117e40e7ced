package survive

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// rounds is how often the daemon is killed; ROOKERY_KILLS=200 is the promise, the
// default is what fits into every run.
func rounds(t *testing.T) int {
	text := os.Getenv("ROOKERY_KILLS")
	if text == "" {
		return 15
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("ROOKERY_KILLS: %v", err)
	}
	return n
}

// killed is a pod whose containers write a line each time they are started.
const killed = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: localhost/busybox:1
    command: [sh, -c, "echo first >>/starts/%[1]s"]
    volumeMounts: [{name: starts, mountPath: /starts}]
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "echo web >>/starts/%[1]s; exec sleep 100000"]
    volumeMounts: [{name: starts, mountPath: /starts}]
  - name: side
    image: localhost/busybox:1
    command: [sh, -c, "echo side >>/starts/%[1]s; exec sleep 100000"]
    volumeMounts: [{name: starts, mountPath: /starts}]
  volumes: [{name: starts, hostPath: {path: %[2]s}}]
`

// Killed at any moment while it starts a pod (and deletes the one before), the next
// daemon brings the pod to Running: once, never twice, never lost.
func TestKilledWhileStarting(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ROOKERY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ROOKERY_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	starts := t.TempDir()
	n := rounds(t)
	at := [4]int{} // how many containers had been started when the daemon was killed
	before := ""
	for i := range n {
		name := fmt.Sprintf("killed-%d", i)
		create(t, fmt.Sprintf(killed, name, starts))
		if before != "" {
			remove(t, before)
		}
		// From when the API took it until after all of it runs: at random, but with as many
		// rounds in each phase of a start, however fast the machine is.
		phase := random.IntN(len(at))
		eventually(t, patience, func() error {
			if n := started(t, filepath.Join(starts, name)); n < phase {
				return fmt.Errorf("%d of %d containers were started", n, phase)
			}
			return nil
		})
		delay := time.Duration(random.Int64N(int64(time.Second)))
		time.Sleep(delay)
		if err := shared.Kill(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		at[started(t, filepath.Join(starts, name))]++
		time.Sleep(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
		if err := shared.Start(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		serving(t)
		waitReady(t, patience, name)
		once(t, name, starts, fmt.Sprintf("killed %s after container %d", delay, phase))
		if before != "" {
			nothingOf(t, before)
		}
		before = name
	}
	clear(t)
	t.Logf("%d rounds; none, one, two or all containers had been started at the kill: %v", n, at)
}

// started counts the lines that the containers of a pod wrote.
func started(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return min(strings.Count(string(data), "\n"), 3)
}

// once checks that each container of the pod runs once, and was started once: neither one
// that nobody had noted yet nor an init container was started anew.
func once(t *testing.T, name, starts, when string) {
	t.Helper()
	p, err := pod(name)
	if err != nil {
		t.Fatal(err)
	}
	running := map[string]int{}
	for name, all := range containers(t, name) {
		for _, c := range all {
			if c.State == "running" {
				running[name]++
			}
		}
	}
	if running["web"] != 1 || running["side"] != 1 || len(running) != 2 {
		t.Errorf("%s, %s: running containers are %v", name, when, running)
	}
	out, err := podman(t, "pod ps -q --filter name="+name+"_")
	if err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("%s, %s: Podman's pods are %q, %v", name, when, out, err)
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.RestartCount != 0 {
			t.Errorf("%s, %s: %s was restarted %d times", name, when, s.Name, s.RestartCount)
		}
	}
	data, err := os.ReadFile(filepath.Join(starts, name))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(data); got != "first\nweb\nside\n" && got != "first\nside\nweb\n" {
		t.Errorf("%s, %s: started %q", name, when, strings.Fields(got))
	}
}

// nothingOf waits until Podman has nothing of a deleted pod.
func nothingOf(t *testing.T, name string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if _, err := pod(name); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s is still in the API: %v", name, err)
		}
		out, err := podman(t, "ps -aq --filter label=io.kubernetes.pod.name="+name)
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("Podman still has containers of %s", name)
		}
		return err
	})
}
