package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/runtime/podman"
	"github.com/rundigitalplatform/rookery/test/lab"
)

const (
	// many is as many pods as a Kubernetes node takes.
	many = 110
	// singles is how many single starts the median is of.
	singles = 7
	// probed is how many pods are probed each second.
	probed = 30
	// failing is how many pods fail a probe each second, and failures what is counted of each:
	// of a pod's first 25 events all are sent, later ones seldom.
	failing, failures = 10, 15
)

// benchPod is a pod of one container on one peer, which idles.
func benchPod(name, host string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": "yes"}},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{corev1.LabelHostname: host}, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "web", Image: "localhost/hello:1", Args: []string{"serve"}}},
		},
	}
}

// measureSingle starts one pod at a time, against the same by the Podman API.
func measureSingle(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, 0); err != nil {
		return nil, err
	}
	api, err := b.lab.API()
	if err != nil {
		return nil, err
	}
	host := b.lab.Peers()[1].Name
	rt, err := podman.New(podman.Config{Socket: b.lab.HostDir(host) + "/podman.sock", Owner: "bench", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	var ours, direct []float64
	for i := range singles {
		name := fmt.Sprintf("single-%d", i)
		began := time.Now()
		box, err := directPod(ctx, rt, name, "serve")
		if err != nil {
			return nil, err
		}
		direct = append(direct, time.Since(began).Seconds())
		if err := rt.RemoveSandbox(ctx, box); err != nil {
			return nil, err
		}
		took, err := b.startPods(ctx, api, []*corev1.Pod{benchPod(name, host)})
		if err != nil {
			return nil, err
		}
		ours = append(ours, took.Seconds())
		if err := b.removePods(ctx, api); err != nil {
			return nil, err
		}
	}
	slices.Sort(ours)
	slices.Sort(direct)
	a, d := ours[singles/2], direct[singles/2]
	return []figure{
		{name: "single/ready", value: a, unit: "s", yardstick: fmt.Sprintf("%.2f direct", d)},
		{name: "single/ready-ratio", value: a / d, unit: "x", yardstick: "Podman API", budget: 2},
	}, nil
}

// measureMany fills one peer: how long until all are Ready, what the daemon spends on a
// start, what it costs idle, and what probes cost.
func measureMany(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, 0); err != nil {
		return nil, err
	}
	api, err := b.lab.API()
	if err != nil {
		return nil, err
	}
	host := b.lab.Peers()[1].Name
	pids, err := b.daemons()
	if err != nil {
		return nil, err
	}
	one := map[string]int{host: pids[host]}
	pods := make([]*corev1.Pod, many)
	for i := range pods {
		pods[i] = benchPod(fmt.Sprintf("many-%d", i), host)
	}
	before, err := lab.UsageOf(pids[host])
	if err != nil {
		return nil, err
	}
	took, err := b.startPods(ctx, api, pods)
	if err != nil {
		return nil, err
	}
	after, err := lab.UsageOf(pids[host])
	if err != nil {
		return nil, err
	}
	if err := b.settle(ctx, lab.CalmDown); err != nil {
		return nil, err
	}
	written, cpu, err := b.during(ctx, one, time.Minute)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := b.removePods(ctx, api); err != nil {
		return nil, err
	}
	removed := time.Since(began)
	cost, err := b.probes(ctx, api, host, one)
	if err != nil {
		return nil, err
	}
	event, err := b.events(ctx, api, host, pids[host])
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "many/110-ready", value: took.Seconds(), unit: "s", yardstick: "-"},
		{name: "many/110-removed", value: removed.Seconds(), unit: "s", yardstick: "-"},
		{name: "many/daemon-cpu-a-start", value: 1000 * (after.CPU - before.CPU).Seconds() / many, unit: "ms", yardstick: "status, events, API"},
		{name: "many/daemon-writes-a-start", value: float64(after.Written-before.Written) / 1024 / many, unit: "KiB", yardstick: "the log of one replica"},
		{name: "many/idle-disk-writes", value: written, unit: "bytes/min", yardstick: "-", budget: 1},
		{name: "many/idle-cpu", value: cpu, unit: "% of a core", yardstick: "-", budget: 1},
		{name: "many/probe", value: cost, unit: "ms of cpu", yardstick: "an HTTP probe"},
		{name: "many/event", value: event - cost, unit: "ms of cpu", yardstick: "of a probe that failed"},
	}, nil
}

// probes is what an HTTP probe costs the daemon, in milliseconds of processor time.
func (b *bench) probes(ctx context.Context, api kubernetes.Interface, host string, pids map[string]int) (float64, error) {
	pods := make([]*corev1.Pod, probed)
	for i := range pods {
		pods[i] = benchPod(fmt.Sprintf("probed-%d", i), host)
		pods[i].Spec.Containers[0].LivenessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)}},
			PeriodSeconds: 1,
		}
	}
	if _, err := b.startPods(ctx, api, pods); err != nil {
		return 0, err
	}
	if err := b.settle(ctx, 20*time.Second); err != nil {
		return 0, err
	}
	_, cpu, err := b.during(ctx, pids, 30*time.Second)
	if err != nil {
		return 0, err
	}
	return cpu / 100 * 1000 / probed, b.removePods(ctx, api)
}

// events is what a failed probe with its event costs the daemon, in milliseconds of processor time.
func (b *bench) events(ctx context.Context, api kubernetes.Interface, host string, pid int) (float64, error) {
	pods := make([]*corev1.Pod, failing)
	for i := range pods {
		pods[i] = benchPod(fmt.Sprintf("failing-%d", i), host)
		pods[i].Spec.Containers[0].LivenessProbe = &corev1.Probe{
			ProbeHandler:        corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/nothing", Port: intstr.FromInt32(8080)}},
			InitialDelaySeconds: 20, PeriodSeconds: 1, FailureThreshold: 1000,
		}
	}
	if _, err := b.startPods(ctx, api, pods); err != nil {
		return 0, err
	}
	var cpu [2]time.Duration
	var count [2]int32
	for i, least := range []int32{1, failing * failures} { // from the first failure on
		err := b.until(ctx, 2*time.Minute, func() error {
			list, err := api.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{FieldSelector: "reason=Unhealthy"})
			if err != nil {
				return err
			}
			usage, err := lab.UsageOf(pid)
			if err != nil {
				return err
			}
			cpu[i], count[i] = usage.CPU, 0
			for _, e := range list.Items {
				if strings.HasPrefix(e.InvolvedObject.Name, "failing-") {
					count[i] += e.Count
				}
			}
			if count[i] < least {
				return fmt.Errorf("%d of %d events of failed probes have come", count[i], least)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return float64((cpu[1] - cpu[0]).Microseconds()) / 1000 / float64(count[1]-count[0]), b.removePods(ctx, api)
}

// startPods creates the pods and waits until all are Ready, by one watch.
func (b *bench) startPods(ctx context.Context, api kubernetes.Interface, pods []*corev1.Pod) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	began := time.Now()
	all := api.CoreV1().Pods(metav1.NamespaceDefault)
	for _, p := range pods {
		if err := b.until(ctx, 20*time.Second, func() error { // a new namespace has no service account for a moment
			_, err := all.Create(ctx, p, metav1.CreateOptions{})
			return err
		}); err != nil {
			return 0, err
		}
	}
	events, err := all.Watch(ctx, metav1.ListOptions{LabelSelector: "bench=yes"})
	if err != nil {
		return 0, err
	}
	defer events.Stop()
	ready := map[string]bool{}
	for e := range events.ResultChan() { // what is there already comes first
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			return 0, fmt.Errorf("watch pods: %v", e.Object)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				ready[p.Name] = c.Status == corev1.ConditionTrue
			}
		}
		n := 0
		for _, is := range ready {
			if is {
				n++
			}
		}
		if n == len(pods) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("watch pods: it ended with %d of %d Ready", len(ready), len(pods))
}

// removePods deletes them and waits until they are gone.
func (b *bench) removePods(ctx context.Context, api kubernetes.Interface) error {
	all := api.CoreV1().Pods(metav1.NamespaceDefault)
	if err := all.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "bench=yes"}); err != nil {
		return err
	}
	return b.until(ctx, 10*time.Minute, func() error {
		list, err := all.List(ctx, metav1.ListOptions{LabelSelector: "bench=yes"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods are left", len(list.Items))
		}
		return err
	})
}
