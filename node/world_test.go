package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
	"sigs.k8s.io/yaml"
)

// world is a peer with an API and an engine in memory, in a bubble of fake time.
type world struct {
	t       *testing.T
	client  *fake.Clientset
	machine *memory.Machine
	network *fakeNetwork
	dir     string
	agent   *Agent
	config  Resources // of the next daemon; its Machine is the world's
	storage Storage   // of the next daemon
	stop    func()
	boot    string    // of the machine, by name
	booted  time.Time // by a clock that is not set

	mu       sync.Mutex
	seen     eviction.Observations                                      // of the machine
	alarm    func()                                                     // that memory gets short
	used     map[string]int64                                           // by container name: bytes of memory, where not as by default
	disk     map[string]int64                                           // by container name: bytes on disk
	script   map[string]func(ctx context.Context, p memory.Process) int // by container name
	exec     func(container string, command []string) int
	pull     func(ctx context.Context, ref string, auth *runtime.RegistryAuth) error // nil: the registry has it
	log      []string                                                                // what containers did, in order
	hostIPs  []string
	podCIDRs []netip.Prefix
	wrap     func(runtime.Runtime) runtime.Runtime // nil: nothing stands before the engine
}

type fakeNetwork struct {
	mu       sync.Mutex
	attached map[string]netip.Addr
	next     int
	second   netip.Addr // of every pod, beside its own; invalid: none
}

func (n *fakeNetwork) Attach(_ context.Context, uid string, _ int, _ []v1.ContainerPort) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.attached[uid]; !ok {
		n.next++
		n.attached[uid] = netip.AddrFrom4([4]byte{10, 42, 0, byte(n.next)})
	}
	if n.second.IsValid() {
		return []netip.Addr{n.attached[uid], n.second}, nil
	}
	return []netip.Addr{n.attached[uid]}, nil
}

func (n *fakeNetwork) Detach(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, uid)
	return nil
}

func (n *fakeNetwork) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attached)
}

// inWorld runs f in a bubble, with an agent running.
func inWorld(t *testing.T, f func(w *world), objects ...kruntime.Object) {
	t.Helper()
	dir, images := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, dir: dir, client: fake.NewClientset(objects...),
			network: &fakeNetwork{attached: map[string]netip.Addr{}},
			script:  map[string]func(context.Context, memory.Process) int{},
			boot:    "first", booted: time.Now().Add(-time.Hour),
			hostIPs: []string{"192.0.2.1"}, podCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")},
		}
		// Events are named by the nanosecond, of which many happen in one here.
		named := map[string]int{}
		w.client.PrependReactor("create", "events", func(action clienttesting.Action) (bool, kruntime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			event := action.(clienttesting.CreateAction).GetObject().(*v1.Event)
			if named[event.Name]++; named[event.Name] > 1 {
				event.Name = fmt.Sprintf("%s-%d", event.Name, named[event.Name])
			}
			return false, nil, nil
		})
		w.machine = memory.New(memory.Config{
			StartDelay: 10 * time.Millisecond, // so that starts have an order
			Images:     []runtime.Image{{ID: "sha256:1", Names: []string{"localhost/hello:1"}}, {ID: "sha256:2", Names: []string{"localhost/hello:2"}}},
			Registry:   []runtime.Image{{ID: "sha256:3", Names: []string{"reg.test/team/app:1"}, Digests: []string{"reg.test/team/app@sha256:33"}, Size: 1000}},
			Handlers:   []string{"other"},
			ImageDir:   images,
			Pull: func(ctx context.Context, ref string, auth *runtime.RegistryAuth) error {
				w.mu.Lock()
				pull := w.pull
				w.mu.Unlock()
				if pull == nil {
					return nil
				}
				return pull(ctx, ref, auth)
			},
			Usage: func(s runtime.ContainerSpec, ran time.Duration) (time.Duration, int64) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if used, ok := w.used[s.Labels["io.kubernetes.container.name"]]; ok {
					return ran / 10, used
				}
				if s.Labels["io.kubernetes.container.name"] == "busy" {
					return ran, 8 << 20
				}
				return ran / 10, 1 << 20
			},
			Disk: func(s runtime.ContainerSpec) int64 {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.disk[s.Labels["io.kubernetes.container.name"]]
			},
			Run: func(ctx context.Context, p memory.Process) int {
				name := p.Spec.Labels["io.kubernetes.container.name"]
				w.note("start " + name)
				w.mu.Lock()
				run := w.script[name]
				w.mu.Unlock()
				code := 0
				if run == nil {
					code = untilStopped(ctx, p)
				} else {
					code = run(ctx, p)
				}
				w.note(fmt.Sprintf("end %s %d", name, code))
				return code
			},
			Exec: func(_ context.Context, s runtime.ContainerSpec, o runtime.ExecOptions) (int, error) {
				w.mu.Lock()
				exec := w.exec
				w.mu.Unlock()
				name := s.Labels["io.kubernetes.container.name"]
				w.note("exec " + name + " " + strings.Join(o.Command, " "))
				if exec == nil {
					return 0, nil
				}
				return exec(name, o.Command), nil
			},
		})
		w.start()
		f(w)
		w.stop()
		w.machine.Close()
	})
}

func untilStopped(ctx context.Context, p memory.Process) int {
	select {
	case <-p.Stop:
		return 0
	case <-ctx.Done():
		return 137
	}
}

func (w *world) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
}

func (w *world) notes() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.log, "\n")
}

func (w *world) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = nil
}

// start starts a daemon; stop of the former one must have been called.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(w.client, 0)
	agent, err := New(Config{
		Name: "p1", Dir: w.dir, Client: w.client, Informers: factory,
		Runtime: w.engine(), Storage: w.storage, Network: w.network,
		NodeAddresses: w.addresses, PodCIDRs: w.podCIDRs,
		ClusterDNS: netip.MustParseAddr("10.43.0.10"), Version: "v1.37.2+rookery",
		Resources: w.resources(),
		Logger:    slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	agent.uptime = func() (string, time.Duration) { return w.boot, time.Since(w.booted) }
	agent.watch = func(context.Context) {} // the machine's own clock is outside of the bubble
	w.agent = agent
	factory.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
		factory.Shutdown()
	}
	w.sleep(time.Second) // informers look ten times a second whether they are synced
}

func (w *world) addresses() (all []v1.NodeAddress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ip := range w.hostIPs {
		all = append(all, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	return all
}

// engine is the machine's, or what a test puts before it.
func (w *world) engine() runtime.Runtime {
	if w.wrap != nil {
		return w.wrap(w.machine.Runtime("test"))
	}
	return w.machine.Runtime("test")
}

// resources of the world's machine, whose disks are not looked at unless a test says so.
func (w *world) resources() Resources {
	r := w.config
	r.Machine = fakeMachine{w}
	return r
}

// fakeMachine says of the world what the test wants.
type fakeMachine struct{ w *world }

func (m fakeMachine) Observe(string, string) (eviction.Observations, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return maps.Clone(m.w.seen), nil
}

func (m fakeMachine) Alarm(ctx context.Context, wake func()) error {
	m.w.mu.Lock()
	m.w.alarm = wake
	m.w.mu.Unlock()
	<-ctx.Done()
	return nil
}

// settle leaves a moment of fake time for what polls.
func (w *world) settle() { w.sleep(100 * time.Millisecond) }

func (w *world) sleep(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

// create makes the pod of a manifest in the API, as the scheduler would have bound it.
func (w *world) create(manifest string) *v1.Pod {
	w.t.Helper()
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(manifest), pod); err != nil {
		w.t.Fatal(err)
	}
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	pod.UID = types.UID("uid-" + pod.Name)
	pod.Spec.NodeName = "p1"
	if pod.Spec.RestartPolicy == "" {
		pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	}
	out, err := w.client.CoreV1().Pods(pod.Namespace).Create(context.Background(), pod, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.settle()
	return out
}

func (w *world) pod(name string) *v1.Pod {
	w.t.Helper()
	pod, err := w.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return pod
}

// delete marks the pod as the API does; the agent has to delete it for good.
func (w *world) delete(name string, grace int64) {
	w.t.Helper()
	pod := w.pod(name)
	at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace
	if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), pod, pod.Namespace); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

func (w *world) gone(name string) bool {
	_, err := w.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	return err != nil
}

func (w *world) sandboxes() []runtime.Sandbox {
	w.t.Helper()
	list, err := w.machine.Runtime("test").List(context.Background(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// summary is a pod's status in one line, for tables.
func summary(pod *v1.Pod) string {
	var b strings.Builder
	b.WriteString(string(pod.Status.Phase))
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodReady {
			fmt.Fprintf(&b, " ready=%s", c.Status)
		}
	}
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, " %s:", c.Name)
			switch {
			case c.State.Running != nil:
				b.WriteString("running")
			case c.State.Waiting != nil:
				b.WriteString(c.State.Waiting.Reason)
			case c.State.Terminated != nil:
				fmt.Fprintf(&b, "%s(%d)", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
			}
			if c.RestartCount > 0 {
				fmt.Fprintf(&b, "*%d", c.RestartCount)
			}
		}
	}
	return b.String()
}

func (w *world) expect(pod, want string) {
	w.t.Helper()
	if have := summary(w.pod(pod)); have != want {
		w.t.Errorf("pod %s:\nhave %s\nwant %s", pod, have, want)
	}
}
