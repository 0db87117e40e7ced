package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rebooted has an init container whose work in memory is lost with the power: without
// it, once more and first, the main container fails.
const rebooted = `
apiVersion: v1
kind: Pod
metadata: {name: rebooted}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: localhost/busybox:1
    command: [sh, -c, "echo first >>/starts/order; echo made >/memory/made"]
    volumeMounts: &mounts [{name: starts, mountPath: /starts}, {name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "cat /memory/made && echo web >>/starts/order && echo run >>/disk/runs && exec sleep 100000"]
    volumeMounts: *mounts
  volumes: [{name: starts, hostPath: {path: %s}}, {name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}]
`

// After a reboot the pods come back from what the peer has on disk: init containers
// first, what was in memory made anew, what was on disk still there.
func TestReboot(t *testing.T) {
	starts := t.TempDir()
	create(t, fmt.Sprintf(rebooted, starts))
	create(t, fmt.Sprintf(plain, "other"))
	waitReady(t, patience, "rebooted", "other")
	before, err := pod("rebooted")
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.Crash(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	if err := shared.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
	eventually(t, 90*time.Second, func() error {
		for _, name := range []string{"rebooted", "other"} {
			p, err := pod(name)
			if err != nil {
				return err
			}
			if err := ready(p); err != nil {
				return err
			}
			for _, s := range p.Status.ContainerStatuses {
				if s.RestartCount != 1 {
					return fmt.Errorf("%s of %s was started again %d times", s.Name, name, s.RestartCount)
				}
			}
		}
		return nil
	})
	t.Logf("pods Ready again %.1fs after the power was back", time.Since(at).Seconds())
	after, err := pod("rebooted")
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID || after.Status.PodIP == "" {
		t.Errorf("the pod was %s, is %s with address %q", before.UID, after.UID, after.Status.PodIP)
	}
	if last := after.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode == 0 {
		t.Errorf("how the run before ended: %+v", last)
	}
	eventually(t, 10*time.Second, func() error { // the program runs, it may not have written yet
		order, err := os.ReadFile(filepath.Join(starts, "order"))
		if err == nil && string(order) != "first\nweb\nfirst\nweb\n" {
			err = fmt.Errorf("order of starts: %q", strings.Fields(string(order)))
		}
		return err
	})
	if out := sh(t, "rookery exec rebooted -c web -- cat /disk/runs"); strings.Count(out, "run") != 2 {
		t.Errorf("the volume on disk holds %q", out)
	}
	clear(t)
}
