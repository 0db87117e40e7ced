package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// events are a pod's or node's as `TYPE REASON MESSAGE *COUNT`, in the order in which they came first.
func (w *world) events(name string) []string {
	w.t.Helper()
	list, err := w.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.SortStableFunc(list.Items, func(a, b v1.Event) int { return a.FirstTimestamp.Compare(b.FirstTimestamp.Time) })
	var out []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name {
			line := e.Type + " " + e.Reason + " " + e.Message
			if e.Count > 1 {
				line += fmt.Sprintf(" *%d", e.Count)
			}
			out = append(out, line)
		}
	}
	return out
}

func (w *world) wantEvents(name string, want ...string) {
	w.t.Helper()
	have := w.events(name)
	for _, line := range want {
		if !slices.Contains(have, line) {
			w.t.Errorf("%s has no event %q, but\n%s", name, line, strings.Join(have, "\n"))
		}
	}
}

const appPod = `
metadata: {name: NAME}
spec:
  imagePullSecrets: [{name: login}]
  containers:
  - {name: web, image: "reg.test/team/app:1", imagePullPolicy: POLICY}
`

func app(name, policy string) string {
	return strings.NewReplacer("NAME", name, "POLICY", policy).Replace(appPod)
}

func loginSecret(name, kind, data string) *v1.Secret {
	key := v1.DockerConfigJsonKey
	if kind == string(v1.SecretTypeDockercfg) {
		key = v1.DockerConfigKey
	}
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "uid-login"},
		Type: v1.SecretType(kind), Data: map[string][]byte{key: []byte(data)}}
}

// members lets only one user pull.
func members(_ context.Context, _ string, auth *runtime.RegistryAuth) error {
	if auth == nil || auth.Username != "u" || auth.Password != "p" {
		return errors.New("reading manifest 1 in reg.test/team/app: unauthorized")
	}
	return nil
}

func slowPull(d time.Duration) func(context.Context, string, *runtime.RegistryAuth) error {
	return func(ctx context.Context, _ string, _ *runtime.RegistryAuth) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestPullEvents(t *testing.T) {
	inWorld(t, func(w *world) {
		w.pull = slowPull(1500 * time.Millisecond)
		w.create(strings.ReplaceAll(app("a", "IfNotPresent"), "  imagePullSecrets: [{name: login}]\n", ""))
		w.sleep(time.Second)
		w.expect("a", "Pending ready=False web:ContainerCreating")
		w.sleep(time.Second)
		w.expect("a", "Running ready=True web:running")
		w.wantEvents("a", `Normal Pulling Pulling image "reg.test/team/app:1"`,
			`Normal Pulled Successfully pulled image "reg.test/team/app:1" in 1.5s (1.5s including waiting). Image size: 1000 bytes.`)
		s := w.pod("a").Status.ContainerStatuses[0]
		if s.ImageID != "reg.test/team/app@sha256:33" || s.Image != "reg.test/team/app:1" {
			t.Errorf("image %s, id %s", s.Image, s.ImageID)
		}
		w.create(strings.ReplaceAll(app("b", "IfNotPresent"), "  imagePullSecrets: [{name: login}]\n", ""))
		w.sleep(time.Second) // events come behind what is urgent
		w.wantEvents("b", `Normal Pulled Container image "reg.test/team/app:1" already present on machine and can be accessed by the pod`)
		node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(node.Status.Images, func(i v1.ContainerImage) bool {
			return i.SizeBytes == 1000 && slices.Equal(i.Names, []string{"reg.test/team/app:1", "reg.test/team/app@sha256:33"})
		}) {
			t.Errorf("the node has %+v", node.Status.Images)
		}
	})
}

// A pull secret that is not there is named; one that comes later is used.
func TestPullSecrets(t *testing.T) {
	for kind, data := range map[string]string{
		string(v1.SecretTypeDockerConfigJson): `{"auths":{"reg.test":{"username":"u","password":"p"},"other.test":{"auth":"eDp5"}}}`,
		string(v1.SecretTypeDockercfg):        `{"https://reg.test/team":{"auth":"dTpw"}}`,
	} {
		t.Run(kind, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.pull = members
				w.create(app("a", "Always"))
				w.expect("a", "Pending ready=False web:ErrImagePull")
				w.sleep(3 * time.Second)
				w.expect("a", "Pending ready=False web:ImagePullBackOff")
				const cause = "reading manifest 1 in reg.test/team/app: unauthorized"
				if m := w.pod("a").Status.ContainerStatuses[0].State.Waiting.Message; m != `Back-off pulling image "reg.test/team/app:1": ErrImagePull: `+cause {
					t.Errorf("message %q", m)
				}
				w.wantEvents("a", `Warning Failed Failed to pull image "reg.test/team/app:1": `+cause, "Warning Failed Error: ErrImagePull",
					`Normal BackOff Back-off pulling image "reg.test/team/app:1"`, "Warning Failed Error: ImagePullBackOff",
					"Warning FailedToRetrieveImagePullSecret Unable to retrieve some image pull secrets (login); attempting to pull the image may not succeed.")
				if _, err := w.client.CoreV1().Secrets("default").Create(context.Background(), loginSecret("login", kind, data), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				w.sleep(10 * time.Second)
				w.expect("a", "Running ready=True web:running")
			})
		})
	}
}

// An image that was pulled with a login is not everybody's.
func TestPulledImageIsNotEverybodys(t *testing.T) {
	inWorld(t, func(w *world) {
		w.pull = members
		w.create(app("a", "IfNotPresent"))
		w.expect("a", "Running ready=True web:running")
		other := strings.ReplaceAll(app("b", "IfNotPresent"), "login", "none")
		w.create(other)
		w.expect("b", "Pending ready=False web:ErrImagePull")
		w.create(strings.ReplaceAll(app("c", "Never"), "login", "none"))
		w.expect("c", "Pending ready=False web:ErrImageNeverPull")
		w.create(app("d", "Never"))
		w.expect("d", "Running ready=True web:running")
		w.stop()
		w.start() // it is remembered
		w.create(strings.ReplaceAll(other, "name: b", "name: e"))
		w.expect("e", "Pending ready=False web:ErrImagePull")
	}, loginSecret("login", string(v1.SecretTypeDockerConfigJson), `{"auths":{"reg.test":{"username":"u","password":"p"}}}`))
}

// A pull that fails again and again is tried more and more seldom, and its events are counted up.
func TestPullBackoff(t *testing.T) {
	inWorld(t, func(w *world) {
		var tries []time.Duration
		began := time.Now()
		w.pull = func(context.Context, string, *runtime.RegistryAuth) error {
			tries = append(tries, time.Since(began).Round(time.Second))
			return errors.New("no such host")
		}
		w.create(app("a", "Always"))
		w.sleep(11 * time.Minute)
		if got := fmt.Sprint(tries[:6]); len(tries) != 7 || got != "[0s 10s 30s 1m10s 2m30s 5m10s]" {
			t.Errorf("tried at %v", tries)
		}
		w.wantEvents("a", `Normal Pulling Pulling image "reg.test/team/app:1" *7`, `Warning Failed Failed to pull image "reg.test/team/app:1": no such host *7`)
	})
}

// Events of one object that only differ in what they say are told as one, and no more
// than a burst of them is sent.
func TestEventsAreAggregatedAndLimited(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(app("a", "Never"))
		worker := w.agent.allWorkers()[0]
		for i := range 100 {
			worker.event(v1.EventTypeWarning, "Unhealthy", "answer %d is wrong", i)
			w.sleep(time.Millisecond)
		}
		w.sleep(time.Second)
		var single, combined int
		list, err := w.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			switch {
			case e.Reason != "Unhealthy":
			case strings.HasPrefix(e.Message, "(combined from similar events): "):
				combined = max(combined, int(e.Count))
			default:
				single++
			}
		}
		if single != 9 || combined == 0 || single+combined > 25 {
			t.Errorf("%d single events, %d combined, want 9 and the rest of a burst of 25", single, combined)
		}
	})
}

func TestImageVolume(t *testing.T) {
	inWorld(t, func(w *world) {
		var seen []runtime.Mount
		w.script["web"] = func(ctx context.Context, p memory.Process) int {
			seen = p.Spec.Mounts
			return untilStopped(ctx, p)
		}
		w.pull = func(context.Context, string, *runtime.RegistryAuth) error { return errors.New("no such host") }
		w.create(`
metadata: {name: a}
spec:
  containers:
  - name: web
    image: localhost/hello:1
    volumeMounts: [{name: data, mountPath: /data}]
  - {name: side, image: "localhost/hello:1"}
  volumes:
  - {name: data, image: {reference: "reg.test/team/app:1", pullPolicy: IfNotPresent}}
`)
		w.expect("a", "Pending ready=False web:ErrImagePull side:running") // who does not mount it does not wait for it
		w.mu.Lock()
		w.pull = nil
		w.mu.Unlock()
		w.sleep(10 * time.Second)
		w.expect("a", "Running ready=True web:running side:running")
		i := slices.IndexFunc(seen, func(m runtime.Mount) bool { return m.Target == "/data" })
		if i < 0 || !seen[i].ReadOnly || !seen[i].NoExec || !strings.HasSuffix(seen[i].Source, "/sha256:3") {
			t.Errorf("mounts are %+v", seen)
		}
		if named := w.agent.namedImages(); !slices.Contains(named, "reg.test/team/app:1") {
			t.Errorf("named are %q", named)
		}
		time.Sleep(time.Hour)
		if freed, err := w.agent.Reclaim(w.t.Context()); err != nil || freed != 0 {
			t.Errorf("reclaimed %d %v", freed, err)
		}
		w.delete("a", 0)
		w.sleep(3 * time.Minute)
		if freed, err := w.agent.Reclaim(w.t.Context()); err != nil || freed != 1000 {
			t.Errorf("after the pod: reclaimed %d %v", freed, err)
		}
	})
}

func TestRuntimeClass(t *testing.T) {
	inWorld(t, func(w *world) {
		const classPod = "metadata: {name: NAME}\nspec:\n  runtimeClassName: NAME\n  containers:\n  - {name: web, image: \"localhost/hello:1\"}\n"
		for _, name := range []string{"known", "unknown", "missing"} {
			w.create(strings.ReplaceAll(classPod, "NAME", name))
		}
		w.sleep(time.Second)
		w.expect("known", "Running ready=True web:running")
		w.expect("unknown", "Pending ready=False web:ContainerCreating")
		w.expect("missing", "Pending ready=False web:ContainerCreating")
		prefix := "Warning FailedCreatePodSandBox Failed to create pod sandbox: "
		if have := w.events("unknown"); len(have) == 0 || !strings.HasPrefix(have[0], prefix+`failed to get sandbox runtime: no runtime for "vm" is configured: `) {
			t.Errorf("events: %q", have)
		}
		if have := w.events("missing"); len(have) == 0 || !strings.HasPrefix(have[0], prefix+`runtimeclass.node.k8s.io "missing" not found`) {
			t.Errorf("events: %q", have)
		}
		class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "missing"}, Handler: "other"}
		if _, err := w.client.NodeV1().RuntimeClasses().Create(context.Background(), class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Minute)
		w.expect("missing", "Running ready=True web:running")
	}, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "known"}, Handler: "other"},
		&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "unknown"}, Handler: "vm"})
}
