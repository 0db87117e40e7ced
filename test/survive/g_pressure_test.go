package survive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// withFlags starts the daemon anew with further flags, and at the end of the test without.
func withFlags(t *testing.T, flags ...string) {
	t.Helper()
	restart := func(flags ...string) error {
		return errors.Join(shared.Kill(context.Background(), host), shared.Start(context.Background(), host, flags...))
	}
	if err := restart(flags...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := restart(); err != nil {
			t.Error(err)
		}
		serving(t)
	})
	serving(t)
}

// waitFailed waits until a pod has failed for that reason, and returns it.
func waitFailed(t *testing.T, name, reason string) (p *v1.Pod) {
	t.Helper()
	took := eventually(t, 2*time.Minute, func() (err error) {
		if p, err = pod(name); err == nil && (p.Status.Phase != v1.PodFailed || p.Status.Reason != reason) {
			err = fmt.Errorf("%s is %s %s: %s", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		return err
	})
	t.Logf("%s %s after %.1fs: %s", name, reason, took.Seconds(), p.Status.Message)
	return p
}

// waitCondition waits until the Node's condition has that status, and is tainted if it is true.
func waitCondition(t *testing.T, kind v1.NodeConditionType, taint string, want v1.ConditionStatus) {
	t.Helper()
	took := eventually(t, time.Minute, func() error {
		c, err := condition(kind)
		if err != nil || c.Status != want {
			return errors.Join(err, fmt.Errorf("the condition is %+v", c))
		}
		n, err := api.CoreV1().Nodes().Get(context.Background(), host, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, have := range n.Spec.Taints {
			if (have.Key == taint) && want == v1.ConditionFalse {
				return fmt.Errorf("the taint %s is still there", taint)
			} else if have.Key == taint {
				return nil
			}
		}
		if want == v1.ConditionTrue {
			return fmt.Errorf("there is no taint %s", taint)
		}
		return nil
	})
	t.Logf("%s=%s after %.1fs", kind, want, took.Seconds())
}

// writer fills its volume with so many MiB, and says when it is told to end.
const writer = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "trap 'echo bye >/told/%[1]s; exit 0' TERM; dd if=/dev/zero of=/data/file bs=1M count=%[2]d; while :; do sleep 0.1; done"]
    volumeMounts: [{name: data, mountPath: /data}, {name: told, mountPath: /told}]
  volumes: [{name: data, emptyDir: {}}, {name: told, hostPath: {path: %[3]s}}]
`

// A disk that fills up: at a soft threshold a pod goes when it lasts, and is asked; at a
// hard one at once. The Node says so until it is over, and who is modest stays.
func TestDiskPressure(t *testing.T) {
	told := t.TempDir()
	onSmallDisk(t, shared.HostDir(host)+"/rookery/pods", "100m")
	withFlags(t, "--eviction-hard=nodefs.available=20Mi,nodefs.inodesFree=0%,imagefs.available=1%", "--eviction-soft=nodefs.available=60Mi",
		"--eviction-soft-grace-period=nodefs.available=15s", "--eviction-max-pod-grace-period=10s", "--eviction-pressure-transition-period=5s")
	create(t, fmt.Sprintf(plain, "modest"))
	waitReady(t, time.Minute, "modest")
	create(t, fmt.Sprintf(writer, "slow", 50, told))
	waitCondition(t, v1.NodeDiskPressure, v1.TaintNodeDiskPressure, v1.ConditionTrue)
	if p, err := pod("slow"); err != nil || p.Status.Phase == v1.PodFailed {
		t.Errorf("a soft threshold evicts at once: %v, %+v", err, p.Status)
	}
	p := waitFailed(t, "slow", "Evicted")
	if !strings.Contains(p.Status.Message, "The node was low on resource: ephemeral-storage") {
		t.Errorf("the message is %q", p.Status.Message)
	}
	if text, err := os.ReadFile(told + "/slow"); err != nil || string(text) != "bye\n" {
		t.Errorf("it was not asked to end: %q, %v", text, err)
	}
	waitCondition(t, v1.NodeDiskPressure, v1.TaintNodeDiskPressure, v1.ConditionFalse)
	create(t, fmt.Sprintf(writer, "fast", 85, told))
	began := time.Now()
	waitFailed(t, "fast", "Evicted")
	t.Logf("a hard threshold evicts within %.1fs of the pod's creation", time.Since(began).Seconds())
	waitReady(t, time.Minute, "modest")
	waitCondition(t, v1.NodeDiskPressure, v1.TaintNodeDiskPressure, v1.ConditionFalse)
	clear(t)
}
