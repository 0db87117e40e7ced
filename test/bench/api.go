package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// rates are requests a second of 16 clients.
type rates struct{ Creates, Gets, Updates float64 }

// measureAPI measures one peer alone, on disk, so that the figures stand beside
// kube-apiserver and etcd on one machine, then the leader of three from a fourth host.
func measureAPI(ctx context.Context, b *bench) ([]figure, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := b.lab.Run(ctx, "client", self, "api-client", "-kubeconfig", b.lab.HostDir("client")+"/admin.kubeconfig")
	if err != nil {
		return nil, err
	}
	var three rates
	if err := json.Unmarshal([]byte(out), &three); err != nil {
		return nil, err
	}
	one, err := b.onePeer(ctx, self)
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "api/creates", value: one.Creates, unit: "1/s", yardstick: "kube-apiserver 1434", budget: 1.5 * 1434, atLeast: true},
		{name: "api/gets", value: one.Gets, unit: "1/s", yardstick: "kube-apiserver 2862", budget: 1.5 * 2862, atLeast: true},
		{name: "api/get+update", value: one.Updates, unit: "1/s", yardstick: "kube-apiserver 848"},
		{name: "api/creates-3-peers", value: three.Creates, unit: "1/s", yardstick: "-"},
		{name: "api/gets-3-peers", value: three.Gets, unit: "1/s", yardstick: "-"},
	}, nil
}

// onePeer measures a cluster of one.
func (b *bench) onePeer(ctx context.Context, self string) (r rates, err error) {
	dir := fmt.Sprintf("/tmp/rookery-api-%d", os.Getpid())
	l, err := lab.Up(ctx, lab.Options{Dir: dir, Peers: 1, Bin: b.bin}, b.say)
	defer func() { err = errors.Join(err, lab.Down(context.Background(), dir)) }()
	if err != nil {
		return r, err
	}
	out, err := l.Run(ctx, "h1", self, "api-client", "-kubeconfig", l.HostDir("h1")+"/rookery/admin.kubeconfig")
	if err != nil {
		return r, err
	}
	err = json.Unmarshal([]byte(out), &r)
	return r, err
}

// apiClient is the load itself, run inside a host of the lab.
func apiClient(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("api-client", flag.ContinueOnError)
	path := f.String("kubeconfig", "", "of the cluster to load")
	if err := f.Parse(args); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", *path)
	if err != nil {
		return err
	}
	cfg.QPS = -1
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	ns := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(ns)
	var r rates
	name := func(n int64) string { return fmt.Sprintf("cm-%d", n) }
	data := map[string]string{"data": strings.Repeat("x", 512)}
	var created int64
	if r.Creates, created, err = rate(func(n int64) error {
		_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name(n)}, Data: data}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if r.Gets, _, err = rate(func(n int64) error {
		_, err := maps.Get(ctx, name(n%created), metav1.GetOptions{})
		return err
	}); err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if r.Updates, _, err = rate(func(n int64) error {
		cm, err := maps.Get(ctx, name(n%created), metav1.GetOptions{})
		if err != nil {
			return err
		}
		cm.Data["n"] = fmt.Sprint(n)
		_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	}); err != nil {
		return fmt.Errorf("get+update: %w", err)
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
		return err
	}
	// Until all of it is gone the cluster has work to do, beside whatever is measured next.
	err = wait.PollUntilContextTimeout(ctx, time.Second, 5*time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("delete what was created: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// rate runs do by 16 clients for some seconds and returns how often a second, and how often in all.
func rate(do func(n int64) error) (perSecond float64, total int64, err error) {
	const clients, length = 16, 5 * time.Second
	var n atomic.Int64
	var all sync.WaitGroup
	failures := make([]error, clients)
	began := time.Now()
	for c := range clients {
		all.Go(func() {
			for time.Since(began) < length && failures[c] == nil {
				failures[c] = do(n.Add(1) - 1)
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(began).Seconds(), n.Load(), errors.Join(failures...)
}
