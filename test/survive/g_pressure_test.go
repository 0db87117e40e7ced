package survive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
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
	took := eventually(t, patience, func() error {
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
metadata: {name: %[1]s}
spec:
  priorityClassName: %[4]s
  terminationGracePeriodSeconds: 30
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "trap 'echo bye >/told/%[1]s; exit 0' TERM; dd if=/dev/zero of=/data/file bs=1M count=%[2]d; while :; do sleep 0.1; done"]
    volumeMounts: [{name: data, mountPath: /data}, {name: told, mountPath: /told}]
  volumes: [{name: data, emptyDir: {}}, {name: told, hostPath: {path: %[3]s}}]
`

// A disk that fills up: at a soft threshold a pod goes when it lasts, and is asked; at a
// hard one at once. The Node says so until it is over, and who is modest stays, and who is
// more important even if it uses more.
func TestDiskPressure(t *testing.T) {
	told := t.TempDir()
	onSmallDisk(t, shared.HostDir(host)+"/rookery/pods", "100m")
	withFlags(t, "--eviction-hard=nodefs.available=20Mi,nodefs.inodesFree=0%,imagefs.available=1%", "--eviction-soft=nodefs.available=60Mi",
		"--eviction-soft-grace-period=nodefs.available=15s", "--eviction-max-pod-grace-period=10s", "--eviction-pressure-transition-period=5s")
	create(t, fmt.Sprintf(plain, "modest"))
	waitReady(t, patience, "modest")
	important := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "important"}, Value: 1000}
	classes := api.SchedulingV1().PriorityClasses()
	if _, err := classes.Create(t.Context(), important, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { classes.Delete(context.Background(), important.Name, metav1.DeleteOptions{}) })
	create(t, fmt.Sprintf(writer, "vital", 30, told, important.Name))
	create(t, fmt.Sprintf(writer, "slow", 25, told, ""))
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
	create(t, fmt.Sprintf(writer, "fast", 55, told, ""))
	began := time.Now()
	waitFailed(t, "fast", "Evicted")
	t.Logf("a hard threshold evicts within %.1fs of the pod's creation", time.Since(began).Seconds())
	waitReady(t, patience, "modest", "vital")
	waitCondition(t, v1.NodeDiskPressure, v1.TaintNodeDiskPressure, v1.ConditionFalse)
	clear(t)
}

// pidsLeft is how many process ids are, as kubelet counts, where the peer runs: a host of
// the lab has ids of its own.
func pidsLeft(t *testing.T) int {
	t.Helper()
	number := func(text string) int {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	_, all, _ := strings.Cut(strings.Fields(sh(t, "cat /proc/loadavg"))[3], "/")
	return min(number(sh(t, "cat /proc/sys/kernel/pid_max")), number(sh(t, "cat /proc/sys/kernel/threads-max"))) - number(all)
}

const forker = `
apiVersion: v1
kind: Pod
metadata: {name: forker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sh, -c, "i=0; while [ $i -lt 1500 ]; do sleep 100000 & i=$((i+1)); done; wait"]}
`

// A pod that takes the machine's process ids goes, and nobody else.
func TestPIDPressure(t *testing.T) {
	create(t, fmt.Sprintf(plain, "modest"))
	create(t, forker)
	waitReady(t, patience, "modest", "forker")
	eventually(t, patience, func() error {
		out, err := try(t, "rookery", "exec", "forker", "--", "sh", "-c", "ls -d /proc/[0-9]* | wc -l")
		if n, _ := strconv.Atoi(strings.TrimSpace(out)); err == nil && n < 1500 {
			err = fmt.Errorf("the pod has only %s processes", out)
		}
		return err
	})
	// With half of them it would be enough: what else runs on this machine comes and goes.
	withFlags(t, fmt.Sprintf("--eviction-hard=pid.available=%d,nodefs.available=1%%,imagefs.available=1%%", pidsLeft(t)+750), "--eviction-pressure-transition-period=5s")
	waitCondition(t, v1.NodePIDPressure, v1.TaintNodePIDPressure, v1.ConditionTrue)
	if p := waitFailed(t, "forker", "Evicted"); !strings.Contains(p.Status.Message, "The node was low on resource: pids") {
		t.Errorf("the message is %q", p.Status.Message)
	}
	waitCondition(t, v1.NodePIDPressure, v1.TaintNodePIDPressure, v1.ConditionFalse)
	waitReady(t, patience, "modest")
	clear(t)
}

const bound = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: h1
  terminationGracePeriodSeconds: 1
  %s
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sleep, "100000"], resources: {requests: {memory: %s}}}
`

// Pods that are bound to a peer without room for them are turned away; a critical one
// takes the room of another.
func TestNoRoom(t *testing.T) {
	withFlags(t, "--max-pods=2")
	eventually(t, 30*time.Second, func() error {
		n, err := api.CoreV1().Nodes().Get(t.Context(), host, metav1.GetOptions{})
		if err == nil && n.Status.Allocatable.Pods().Value() != 2 {
			err = fmt.Errorf("the Node takes %s pods", n.Status.Allocatable.Pods())
		}
		return err
	})
	create(t, fmt.Sprintf(plain, "first"))
	waitReady(t, patience, "first")
	create(t, fmt.Sprintf(bound, "huge", "", "1000Gi"))
	if p := waitFailed(t, "huge", "OutOfmemory"); !strings.Contains(p.Status.Message, "Node didn't have enough resource: memory") {
		t.Errorf("the message is %q", p.Status.Message)
	}
	create(t, fmt.Sprintf(bound, "second", "", "10Mi"))
	waitReady(t, patience, "second")
	create(t, fmt.Sprintf(bound, "third", "", "10Mi"))
	if p := waitFailed(t, "third", "OutOfpods"); !strings.Contains(p.Status.Message, "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2") {
		t.Errorf("the message is %q", p.Status.Message)
	}
	create(t, fmt.Sprintf(bound, "vital", "priorityClassName: system-cluster-critical", "10Mi"))
	waitFailed(t, "first", "Preempting") // it requests nothing, the other something
	waitReady(t, patience, "vital", "second")
	if all := containers(t, "first"); len(all) != 0 {
		t.Errorf("of the preempted pod is left: %v", all)
	}
	clear(t)
}
