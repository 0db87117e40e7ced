package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

const plainPod = `
metadata: {name: a}
spec:
  containers:
  - {name: web, image: "localhost/hello:1", imagePullPolicy: IfNotPresent}
  terminationGracePeriodSeconds: 30
`

func exits(code int) func(context.Context, memory.Process) int {
	return func(context.Context, memory.Process) int { return code }
}

func TestPodRunsAndGoes(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod + "  securityContext: {runAsUser: 1000, runAsGroup: 2000}\n")
		w.expect("a", "Running ready=True web:running")
		pod := w.pod("a")
		if pod.Status.PodIP != "10.42.0.1" || pod.Status.HostIP != "192.0.2.1" || pod.Status.StartTime == nil {
			t.Errorf("addresses and start: %+v", pod.Status)
		}
		if id := pod.Status.ContainerStatuses[0].ContainerID; !strings.HasPrefix(id, "podman://") {
			t.Errorf("container id %q", id)
		}
		if u := pod.Status.ContainerStatuses[0].User; u == nil || u.Linux == nil || u.Linux.UID != 1000 || u.Linux.GID != 2000 {
			t.Errorf("user: %+v", u)
		}
		w.delete("a", 30)
		w.sleep(time.Second)
		if !w.gone("a") || len(w.sandboxes()) != 0 || w.network.count() != 0 {
			t.Errorf("left: gone=%v sandboxes=%d attached=%d", w.gone("a"), len(w.sandboxes()), w.network.count())
		}
	})
}

func TestInitAndSidecarOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["first"] = func(context.Context, memory.Process) int { time.Sleep(5 * time.Second); return 0 }
		w.script["last"] = exits(0)
		w.create(`
metadata: {name: a}
spec:
  initContainers:
  - {name: first, image: "localhost/hello:1"}
  - {name: proxy, image: "localhost/hello:1", restartPolicy: Always}
  - {name: log, image: "localhost/hello:1", restartPolicy: Always}
  - {name: last, image: "localhost/hello:1"}
  containers:
  - {name: web, image: "localhost/hello:1"}
`)
		w.sleep(hold)
		w.expect("a", "Pending ready=False first:running proxy:PodInitializing log:PodInitializing last:PodInitializing web:PodInitializing")
		w.sleep(6 * time.Second)
		w.expect("a", "Running ready=True first:Completed(0) proxy:running log:running last:Completed(0) web:running")
		w.delete("a", 30)
		w.sleep(time.Second)
		want := "start first\nend first 0\nstart proxy\nstart log\nstart last\nend last 0\nstart web\nend web 0\nend log 0\nend proxy 0"
		if have := w.notes(); have != want {
			t.Errorf("order:\n%s\nwant:\n%s", have, want)
		}
		if !w.gone("a") {
			t.Error("pod is still there")
		}
	})
}

func TestCrashBackoff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["web"] = exits(3)
		w.create(plainPod)
		// The first restart is at once, the next after 10 s, 20 s, 40 s.
		w.expect("a", "Running ready=False web:CrashLoopBackOff*1")
		w.sleep(9 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*1")
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*2")
		w.sleep(20 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*3")
		last := w.pod("a").Status.ContainerStatuses[0].LastTerminationState.Terminated
		if last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.FinishedAt.IsZero() {
			t.Errorf("last state: %+v", last)
		}
		w.mu.Lock()
		delete(w.script, "web")
		w.mu.Unlock()
		w.sleep(41 * time.Second)
		w.expect("a", "Running ready=True web:running*4")
		if n := len(w.sandboxes()[0].Containers); n != 2 {
			t.Errorf("%d containers kept, want the present one and the one before", n)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy string
		code   int
		want   string
	}{
		{"Never", 0, "Succeeded ready=False web:Completed(0)"},
		{"Never", 2, "Failed ready=False web:Error(2)"},
		{"OnFailure", 0, "Succeeded ready=False web:Completed(0)"},
		{"OnFailure", 2, "Running ready=False web:CrashLoopBackOff*1"},
		{"Always", 0, "Running ready=False web:CrashLoopBackOff*1"},
	} {
		t.Run(tt.policy, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.script["web"] = exits(tt.code)
				w.create(plainPod + "  restartPolicy: " + tt.policy + "\n")
				w.sleep(2 * time.Second)
				w.expect("a", tt.want)
			})
		})
	}
}

func TestRestartedDaemonAdopts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["web"] = exits(1)
		w.create(plainPod)
		w.mu.Lock()
		delete(w.script, "web")
		w.mu.Unlock()
		w.sleep(11 * time.Second)
		w.expect("a", "Running ready=True web:running*2")
		before := w.pod("a").Status
		w.create(strings.Replace(plainPod, "name: a", "name: b", 1))

		w.stop()
		if err := w.client.CoreV1().Pods("default").Delete(context.Background(), "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.clear()
		w.start()
		w.sleep(5 * time.Second)
		w.expect("a", "Running ready=True web:running*2")
		after := w.pod("a").Status
		if before.ContainerStatuses[0].ContainerID != after.ContainerStatuses[0].ContainerID || before.PodIP != after.PodIP {
			t.Errorf("adopted another container: %s, was %s", after.ContainerStatuses[0].ContainerID, before.ContainerStatuses[0].ContainerID)
		}
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes, want 1: the other pod was deleted meanwhile", n)
		}
		if strings.Contains(w.notes(), "start") {
			t.Errorf("the new daemon started: %s", w.notes())
		}
	})
}

// lateStart is an engine that starts a container which a daemon asked for that was killed
// meanwhile, after the next one has seen it as created only.
type lateStart struct {
	runtime.Runtime
	done bool
}

func (l *lateStart) CreateContainer(ctx context.Context, sandbox string, spec runtime.ContainerSpec) (string, error) {
	if !l.done {
		l.done = true
		id, err := l.Runtime.CreateContainer(ctx, sandbox, spec)
		if err == nil {
			err = l.Runtime.StartContainer(ctx, id)
		}
		if err != nil {
			return "", err
		}
	}
	return l.Runtime.CreateContainer(ctx, sandbox, spec)
}

func TestStartThatCameLate(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		w.wrap = func(rt runtime.Runtime) runtime.Runtime { return &lateStart{Runtime: rt} }
		w.start()
		w.create(plainPod)
		w.sleep(5 * time.Second)
		w.expect("a", "Running ready=True web:running")
		if notes := w.notes(); strings.Count(notes, "start web") != 1 {
			t.Errorf("it was started more than once: %s", notes)
		}
	})
}

func TestPowerLoss(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		w.stop()
		w.machine.Crash()
		w.start()
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=True web:running*1")
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes, want 1", n)
		}
	})
}

func TestTerminationTakesReadinessAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		stubborn := func(ctx context.Context, _ memory.Process) int { <-ctx.Done(); return 137 }
		w.script["web"] = stubborn
		w.create(plainPod)
		w.expect("a", "Running ready=True web:running")
		w.delete("a", 30)
		w.expect("a", "Running ready=False web:running")
		w.sleep(29 * time.Second)
		if w.gone("a") {
			t.Fatal("gone before its grace was over")
		}
		w.delete("a", 5) // harder
		w.sleep(3 * time.Second)
		if !w.gone("a") {
			t.Error("a second delete did not shorten the grace")
		}
	})
}

func TestContainerRemovedBehindOurBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		rt := w.machine.Runtime("test")
		if err := rt.RemoveContainer(context.Background(), w.sandboxes()[0].Containers[0].ID); err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Second)
		w.expect("a", "Running ready=True web:running*1")
		if last := w.pod("a").Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode == 0 {
			t.Errorf("last state: %+v", last)
		}
	})
}

func TestDeadline(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod + "  activeDeadlineSeconds: 60\n")
		w.expect("a", "Running ready=True web:running")
		w.sleep(61 * time.Second)
		pod := w.pod("a")
		if pod.Status.Phase != v1.PodFailed || pod.Status.Reason != "DeadlineExceeded" {
			t.Errorf("phase %s reason %s", pod.Status.Phase, pod.Status.Reason)
		}
	})
}

// What a pod has lived counts on over a restart of the daemon, and over a boot of the machine,
// whatever the clock said and says.
func TestDeadlineOverRestart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		set   time.Duration // the start that the API was told is so much later: the clock was ahead then
		boot  string
		lives time.Duration // on after the restart
	}{
		{"the same boot", 0, "first", 30 * time.Second},
		{"the same boot, the clock set back", time.Hour, "first", 30 * time.Second},
		{"the same boot, the clock set forward", -time.Hour, "first", 30 * time.Second},
		{"another boot", 0, "second", 30 * time.Second},
		{"another boot, the clock set back", time.Hour, "second", 60 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.create(plainPod + "  activeDeadlineSeconds: 60\n")
				w.sleep(30*time.Second - 100*time.Millisecond)
				w.stop()
				pod := w.pod("a")
				pod.Status.StartTime = &metav1.Time{Time: pod.Status.StartTime.Add(tt.set)}
				if _, err := w.client.CoreV1().Pods("default").UpdateStatus(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				w.boot = tt.boot
				w.start() // takes a second
				w.sleep(tt.lives - 3*time.Second)
				w.expect("a", "Running ready=True web:running")
				w.sleep(5 * time.Second)
				if pod := w.pod("a"); pod.Status.Reason != "DeadlineExceeded" {
					t.Errorf("phase %s reason %s", pod.Status.Phase, pod.Status.Reason)
				}
			})
		})
	}
}

// Whatever a loss of power leaves of the state on disk, the pod goes on by what engine and API know.
func TestTornState(t *testing.T) {
	for name, tear := range map[string]func(whole []byte) []byte{
		"empty":        func([]byte) []byte { return nil },
		"half":         func(whole []byte) []byte { return whole[:len(whole)/2] },
		"zeros":        func(whole []byte) []byte { return make([]byte, len(whole)) },
		"zeros at end": func(whole []byte) []byte { return append(whole[:len(whole)-9:len(whole)-9], make([]byte, 9)...) },
		"another file": func([]byte) []byte { return []byte("{}") },
		"null":         func([]byte) []byte { return []byte("null") },
		"no memory":    func([]byte) []byte { return []byte(`{"sandbox":7,"containers":{"web":null}}`) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.script["web"] = exits(1)
				w.create(plainPod)
				w.mu.Lock()
				delete(w.script, "web")
				w.mu.Unlock()
				w.sleep(11 * time.Second)
				w.expect("a", "Running ready=True web:running*2")
				w.stop()
				path := filepath.Join(w.dir, "uid-a", "state.json")
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, tear(whole), 0o600); err != nil {
					t.Fatal(err)
				}
				w.clear()
				w.start()
				w.sleep(5 * time.Second)
				w.expect("a", "Running ready=True web:running*2")
				if w.notes() != "" || len(w.sandboxes()) != 1 {
					t.Errorf("the new daemon did: %s", w.notes())
				}
				if s, _, err := readState(path); err != nil || s.Containers["web"].Attempt != 2 {
					t.Errorf("the state is not whole again: %+v %v", s, err)
				}
				w.machine.Crash() // the sandbox is made anew, and found by its name again
				w.sleep(5 * time.Second)
				w.expect("a", "Running ready=True web:running*3")
			})
		})
	}
}
