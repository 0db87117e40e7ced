package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/controller"
	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/scheduler"
)

// TestMain sets the gates as cmd does: they are global to a process.
func TestMain(m *testing.M) {
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(controller.Features()); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// cluster is an API with three nodes, whose agents are a loop of the test.
type cluster struct {
	t       *testing.T
	server  *apiserver.Server
	admin   kubernetes.Interface
	members *members
	key     *ecdsa.PrivateKey
	ca      struct{ cert, key string } // files
	logger  *slog.Logger
	usage   *usage
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	var out io.Writer = io.Discard
	if testing.Verbose() {
		out = os.Stderr
	}
	logger := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	usage := &usage{}
	server, err := apiserver.New(apiserver.Config{Store: raftstore.NewMemory(), Logger: logger, TokenKey: key, Kubelet: usage.agent})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done) })
	c := &cluster{t: t, server: server, members: newMembers(), key: key, logger: logger, usage: usage}
	c.ca.cert, c.ca.key = writeCA(t)
	c.admin, err = kubernetes.NewForConfig(server.ClientConfig("admin", "system:masters"))
	must(t, err)
	usage.admin = c.admin
	c.eventually("api ready", func() bool { return server.Ready() == nil })
	must(t, server.Bootstrap(ctx))
	for i, name := range []string{"a", "b", "c"} {
		c.members.set(name, controller.Member{Liveness: controller.Alive, Addresses: []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", i+1))}})
		_, err := c.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
			Status: corev1.NodeStatus{
				Capacity: corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("110")}, Allocatable: corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("110")},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}, metav1.CreateOptions{})
		must(t, err)
	}
	go c.agents(ctx)
	return c
}

// agents plays the agents of living nodes: pods run as soon as they are bound,
// and go as soon as they are deleted.
func (c *cluster) agents(ctx context.Context) {
	n := 0
	for ctx.Err() == nil {
		pods, err := c.admin.CoreV1().Pods("").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil {
			for _, pod := range pods.Items {
				if pod.Spec.NodeName == "" || c.members.Snapshot()[pod.Spec.NodeName].Liveness != controller.Alive {
					continue
				}
				switch {
				case pod.DeletionTimestamp != nil:
					_ = c.admin.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0))
				case pod.Status.PodIP == "":
					n++
					pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.42.0.%d", n%250+1)
					pod.Status.StartTime = ptr.To(metav1.NewTime(time.Now().Add(-time.Hour))) // past all grace of autoscalers
					pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
					pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
					_, _ = c.admin.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, &pod, metav1.UpdateOptions{})
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// term runs the controllers and the scheduler as cmd does, until stop.
func (c *cluster) term() (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	authority, err := os.ReadFile(c.ca.cert)
	if err != nil {
		c.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		err := controller.Run(ctx, controller.Config{
			ClientConfig: c.server.ClientConfig, Informers: c.server.Informers(), StartInformers: c.server.StartInformers,
			Members: c.members, RootCA: authority, TokenKey: c.key, CAFile: c.ca.cert, CAKeyFile: c.ca.key, Logger: c.logger,
		})
		if err != nil {
			c.t.Errorf("controllers: %v", err)
		}
	})
	running.Go(func() {
		term := controller.NewTerm(c.server.Informers(), c.server.StartInformers)
		if err := scheduler.Run(ctx, scheduler.Config{ClientConfig: c.server.ClientConfig, Informers: term, Logger: c.logger}); err != nil {
			c.t.Errorf("scheduler: %v", err)
		}
		if err := term.Close(); err != nil {
			c.t.Errorf("term: %v", err)
		}
	})
	running.Go(func() {
		if err := c.server.RunDefinitions(ctx); err != nil {
			c.t.Errorf("definitions: %v", err)
		}
	})
	return sync.OnceFunc(func() { cancel(); running.Wait() })
}

func TestCluster(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	stop := c.term()
	defer stop()

	_, err := c.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("default service account and root CA", func() bool {
		_, err1 := c.admin.CoreV1().ServiceAccounts("shop").Get(ctx, "default", metav1.GetOptions{})
		_, err2 := c.admin.CoreV1().ConfigMaps("shop").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err1 == nil && err2 == nil
	})
	c.eventually("endpoints of the api", func() bool { return c.endpoints("default", "kubernetes") == 3 })
	c.eventually("view role is aggregated", func() bool {
		role, err := c.admin.RbacV1().ClusterRoles().Get(ctx, "view", metav1.GetOptions{})
		return err == nil && len(role.Rules) > 0
	})

	start := time.Now()
	c.deploy("shop", "web", 9)
	c.eventually("9 pods on 3 nodes", func() bool { return c.even("shop", "web", 9, "a", "b", "c") })
	t.Logf("9 pods bound after %v", time.Since(start).Round(time.Millisecond))
	c.eventually("9 endpoints", func() bool { return c.endpoints("shop", "web") == 9 })
	start = time.Now()
	c.deploy("shop", "many", 30)
	c.eventually("30 pods on 3 nodes", func() bool { return c.even("shop", "many", 30, "a", "b", "c") })
	t.Logf("30 pods bound after %v", time.Since(start).Round(time.Millisecond))

	// A node dies: its endpoints go at once, its pods after their tolerationSeconds.
	start = time.Now()
	c.members.liveness(controller.Dead, "b")
	c.eventually("endpoints of the dead node are gone", func() bool { return c.endpoints("shop", "web") == 6 && c.endpoints("default", "kubernetes") == 2 })
	t.Logf("endpoints gone after %v", time.Since(start).Round(time.Millisecond))
	c.eventually("replacements elsewhere", func() bool { return c.endpoints("shop", "web") == 9 && c.even("shop", "many", 30, "a", "c") })
	if d := time.Since(start); d < 5*time.Second || d > 60*time.Second {
		t.Errorf("replaced after %v, want about 5 s", d)
	} else {
		t.Logf("replaced after %v", d.Round(time.Millisecond))
	}

	// It comes back, and its agent says so.
	c.members.liveness(controller.Alive, "b")
	c.ready("b")
	untainted := func(name string) bool {
		node, err := c.admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err == nil && len(node.Spec.Taints) == 0
	}
	c.eventually("taints are gone", func() bool { return untainted("b") })

	// Nobody is evicted by a leader that is cut off.
	c.members.liveness(controller.Dead, "b", "c")
	c.stays("no taints without a majority", 2*time.Second, func() bool { return untainted("c") })
	c.members.liveness(controller.Alive, "b", "c")
	c.ready("b")
	c.ready("c")
	c.eventually("no taints are left", func() bool { return untainted("b") && untainted("c") })

	// A peer's record goes: its Node and its pods do too.
	c.deploy("shop", "web", 12)
	c.eventually("b is used again", func() bool { return c.count("shop", "web", "b") > 0 })
	c.members.remove("b")
	c.eventually("node and its pods are gone", func() bool {
		_, err := c.admin.CoreV1().Nodes().Get(ctx, "b", metav1.GetOptions{})
		return apierrors.IsNotFound(err) && c.count("shop", "web", "b") == 0 && c.endpoints("shop", "web") == 12
	})

	// Deletion cascades; a namespace takes everything with it.
	must(t, c.admin.AppsV1().Deployments("shop").Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}))
	c.eventually("deployment cascades", func() bool {
		_, err := c.admin.AppsV1().Deployments("shop").Get(ctx, "web", metav1.GetOptions{})
		return apierrors.IsNotFound(err) && c.spread("shop", "web") == "0 0 0"
	})
	must(t, c.admin.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}))
	c.eventually("namespace is gone", func() bool {
		_, err := c.admin.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

// TestTermsLeakNothing runs three terms in one process.
func TestTermsLeakNothing(t *testing.T) {
	c := newCluster(t)
	var after []int
	for i := range 3 {
		stop := c.term()
		name := fmt.Sprintf("web%d", i)
		c.deploy("default", name, 3)
		c.eventually("pods bound", func() bool { return c.even("default", name, 3, "a", "b", "c") })
		stop()
		// What upstream leaves to end by itself may take a moment.
		n := goruntime.NumGoroutine()
		for quiet := 0; quiet < 20 || i == 2 && n > after[1]+3 && quiet < 600; time.Sleep(50 * time.Millisecond) {
			if m := goruntime.NumGoroutine(); m < n {
				n, quiet = m, 0
			} else {
				quiet++
			}
		}
		after = append(after, n)
	}
	t.Logf("goroutines after each term: %v", after)
	// The first term starts the shared informers, which stay; after that nothing is added.
	if after[2] > after[1]+3 {
		buf := make([]byte, 1<<20)
		t.Errorf("goroutines after each term: %v\n%s", after, buf[:goruntime.Stack(buf, true)])
	}
}

func (c *cluster) deploy(namespace, name string, replicas int32) {
	c.t.Helper()
	ctx, labels := c.t.Context(), map[string]string{"app": name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example/web"}}},
			},
		},
	}
	_, err := c.admin.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = c.admin.AppsV1().Deployments(namespace).Patch(ctx, name, "application/merge-patch+json",
			fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
		must(c.t, err)
		return
	}
	must(c.t, err)
	_, err = c.admin.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(c.t, err)
}

// ready plays the agent of a node that is back.
func (c *cluster) ready(node string) {
	c.t.Helper()
	c.eventually("agent says ready", func() bool {
		n, err := c.admin.CoreV1().Nodes().Get(c.t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return false
		}
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].Status = corev1.ConditionFalse
			if n.Status.Conditions[i].Type == corev1.NodeReady {
				n.Status.Conditions[i].Status = corev1.ConditionTrue
			}
		}
		_, err = c.admin.CoreV1().Nodes().UpdateStatus(c.t.Context(), n, metav1.UpdateOptions{})
		return err == nil
	})
}

// count is how many of a deployment's pods are bound to a node and not being deleted.
func (c *cluster) count(namespace, name, node string) int {
	pods, err := c.admin.CoreV1().Pods(namespace).List(c.t.Context(), metav1.ListOptions{LabelSelector: "app=" + name, ResourceVersion: "0"})
	must(c.t, err)
	n := 0
	for _, pod := range pods.Items {
		if pod.Spec.NodeName == node && pod.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}

// even says whether so many pods are bound, all of them to these nodes, and each node
// has its share give or take one in ten and one: to spread is a preference, and one
// that the scheduler decides pod by pod.
func (c *cluster) even(namespace, name string, pods int, nodes ...string) bool {
	share, found := pods/len(nodes), 0
	for _, node := range nodes {
		n := c.count(namespace, name, node)
		if n < share-share/10-1 || n > share+share/10+1 {
			return false
		}
		found += n
	}
	return found == pods
}

func (c *cluster) spread(namespace, name string) string {
	var out []string
	for _, node := range []string{"a", "b", "c"} {
		out = append(out, fmt.Sprint(c.count(namespace, name, node)))
	}
	return strings.Join(out, " ")
}

// endpoints is how many ready addresses a Service has.
func (c *cluster) endpoints(namespace, service string) int {
	list, err := c.admin.DiscoveryV1().EndpointSlices(namespace).List(c.t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service, ResourceVersion: "0"})
	must(c.t, err)
	n := 0
	for _, s := range list.Items {
		for _, ep := range s.Endpoints {
			if ptr.Deref(ep.Conditions.Ready, true) {
				n++
			}
		}
	}
	return n
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			nodes, _ := c.admin.CoreV1().Nodes().List(c.t.Context(), metav1.ListOptions{})
			for _, n := range nodes.Items {
				c.t.Logf("node %s: taints %v conditions %v", n.Name, n.Spec.Taints, n.Status.Conditions)
			}
			for _, d := range []string{"web", "many"} {
				c.t.Logf("%s: %s, endpoints %d", d, c.spread("shop", d), c.endpoints("shop", d))
			}
			c.t.Fatalf("not within 2 min: %s", what)
		}
	}
}

func (c *cluster) stays(what string, long time.Duration, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(long); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if !ok() {
			c.t.Fatalf("did not stay so: %s", what)
		}
	}
}

// members is gossip as the test wants it.
type members struct {
	mu    sync.Mutex
	all   map[string]controller.Member
	wakes []chan struct{}
}

func newMembers() *members { return &members{all: map[string]controller.Member{}} }

func (m *members) Snapshot() map[string]controller.Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]controller.Member, len(m.all))
	for k, v := range m.all {
		out[k] = v
	}
	return out
}

func (m *members) Subscribe() (<-chan struct{}, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wake := make(chan struct{}, 1)
	m.wakes = append(m.wakes, wake)
	return wake, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wakes = slices.DeleteFunc(m.wakes, func(w chan struct{}) bool { return w == wake })
	}
}

func (m *members) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	for _, w := range m.wakes {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (m *members) set(name string, member controller.Member) {
	m.change(func() { m.all[name] = member })
}
func (m *members) remove(name string) { m.change(func() { delete(m.all, name) }) }
func (m *members) liveness(l controller.Liveness, names ...string) {
	m.change(func() {
		for _, name := range names {
			member := m.all[name]
			member.Liveness = l
			m.all[name] = member
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
