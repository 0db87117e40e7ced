package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type loadReport struct {
	Sent, Failed int
	LastFailure  time.Time
}

// load starts a program that prints a report; call the result to wait for it.
func (b *bench) load(host string, argv ...string) (func() (loadReport, error), error) {
	cmd, err := b.lab.Command(context.Background(), host, argv...)
	if err != nil {
		return nil, err
	}
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (r loadReport, err error) {
		if err := cmd.Wait(); err != nil {
			return r, fmt.Errorf("load: %w: %s", err, stderr.String())
		}
		err = json.Unmarshal([]byte(out.String()), &r)
		return r, err
	}, nil
}

// cutLoads are how the sample is asked while a peer is cut off: by its Service 200 times a second
// from pods on the peers that stay and 50 times from the first of these itself, and as often by
// an Ingress from a machine on the LAN.
func (b *bench) cutLoads(ctx context.Context, stay []string) (map[string]func() (loadReport, error), error) {
	observer := stay[0]
	api, err := b.lab.API()
	if err != nil {
		return nil, err
	}
	host, err := b.lab.Host(observer)
	if err != nil {
		return nil, err
	}
	all := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "bench"}, Spec: networkingv1.IngressSpec{DefaultBackend: &networkingv1.IngressBackend{
		Service: &networkingv1.IngressServiceBackend{Name: "hello", Port: networkingv1.ServiceBackendPort{Name: "http"}},
	}}}
	if _, err := api.NetworkingV1().Ingresses("hello").Create(ctx, all, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	url := "http://" + host.IP + "/"
	if err := b.until(ctx, time.Minute, func() error { _, err := b.lab.Run(ctx, "client", b.lab.Bin+"/hello", "get", url); return err }); err != nil {
		return nil, err
	}
	const service = "http://hello.hello.svc.cluster.local/"
	out := map[string]func() (loadReport, error){}
	for _, peer := range stay {
		pod, err := b.lab.Run(ctx, peer, "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "--field-selector", "spec.nodeName="+peer, "-o", "jsonpath={.items[0].metadata.name}")
		if err != nil {
			return nil, err
		}
		if out["a pod on "+peer], err = b.load(peer, "rookery", "-n", "hello", "exec", pod, "-c", "hello", "--", "/hello", "load", "-rate", "100", "-for", "30s", service); err != nil {
			return nil, err
		}
	}
	for from, to := range map[string]string{observer: service, "client": url} {
		if out[from], err = b.load(from, b.lab.Bin+"/hello", "load", "-rate", "50", "-for", "30s", to); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *bench) leader(ctx context.Context) (string, error) {
	var s struct{ Leader string }
	err := b.until(ctx, 20*time.Second, func() error {
		if err := b.lab.JSON(ctx, &s, "h1", "rookery", "status", "--json"); err != nil {
			return err
		}
		if s.Leader == "" {
			return fmt.Errorf("there is no leader")
		}
		return nil
	})
	return s.Leader, err
}

// measureFailover cuts off a peer with 10 of 30 pods under load, then kills the leader's daemon.
func measureFailover(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	lead, err := b.leader(ctx)
	if err != nil {
		return nil, err
	}
	var followers []string
	for _, h := range b.lab.Peers() {
		if h.Name != lead {
			followers = append(followers, h.Name)
		}
	}
	victim, observer := followers[0], followers[1]
	elsewhere, _, err := b.ready(ctx, observer, victim)
	if err != nil {
		return nil, err
	}
	loads, err := b.cutLoads(ctx, []string{observer, lead})
	if err != nil {
		return nil, err
	}
	if err := b.settle(ctx, time.Second); err != nil {
		return nil, err
	}
	cutAt := time.Now()
	if err := b.lab.Cut(ctx, victim); err != nil {
		return nil, err
	}
	for _, n := range []int{elsewhere, replicas} { // the loss is noticed, then made good
		if _, err := b.lab.Run(ctx, observer, "rookery", "-n", "hello", "wait", fmt.Sprintf("--for=jsonpath={.status.readyReplicas}=%d", n), "deployment/hello", "--timeout=60s"); err != nil {
			return nil, err
		}
	}
	moved := time.Since(cutAt)
	last := map[string]float64{}
	for from, report := range loads {
		r, err := report()
		if err != nil {
			return nil, err
		}
		if r.Failed > 0 {
			last[from] = r.LastFailure.Sub(cutAt).Seconds()
		}
		b.say(fmt.Sprintf("cut %s: from %s %d of %d requests failed", victim, from, r.Failed, r.Sent))
	}
	if err := b.lab.Heal(ctx, victim); err != nil {
		return nil, err
	}
	if err := b.scale(ctx, replicas); err != nil { // and the leftovers are gone
		return nil, err
	}
	writes, err := b.killLeader(ctx)
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "failover/last-failed-request", value: last[observer], unit: "s", yardstick: "-", budget: 3},
		{name: "failover/last-failed-from-pod", value: max(last["a pod on "+observer], last["a pod on "+lead]), unit: "s", yardstick: "-", budget: 3},
		{name: "failover/last-failed-by-ingress", value: last["client"], unit: "s", yardstick: "-", budget: 3},
		{name: "failover/10-of-30-ready", value: moved.Seconds(), unit: "s", yardstick: "Swarm 19-21, Kubernetes 330", budget: 15},
		{name: "failover/writes-after-leader", value: writes.Seconds(), unit: "s", yardstick: "-", budget: 3},
	}, nil
}

func (b *bench) killLeader(ctx context.Context) (time.Duration, error) {
	lead, err := b.leader(ctx)
	if err != nil {
		return 0, err
	}
	other := "h1"
	if lead == other {
		other = "h2"
	}
	began := time.Now()
	if err := b.lab.Kill(ctx, lead); err != nil {
		return 0, err
	}
	err = b.until(ctx, 30*time.Second, func() error {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := b.lab.Run(try, other, "rookery", "-n", "hello", "create", "configmap", fmt.Sprintf("bench-%d", time.Now().UnixNano()))
		return err
	})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	return took, b.lab.Start(ctx, lead)
}
