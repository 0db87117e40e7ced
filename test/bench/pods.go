package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman"
	"github.com/rundigitalplatform/rookery/test/lab"
)

// replicas is the size of the workload that the budgets are for.
const replicas = 30

// measureStart times `up` on a fresh machine until its API is ready.
func measureStart(ctx context.Context, b *bench) ([]figure, error) {
	dir := fmt.Sprintf("/tmp/rookery-start-%d", os.Getpid())
	l, err := lab.Up(ctx, lab.Options{Dir: dir, Peers: 1, Bin: b.bin, Blank: true}, b.say)
	defer func() {
		if err := lab.Down(context.Background(), dir); err != nil {
			b.say("end lab: " + err.Error())
		}
	}()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := l.Form(ctx, nil, func(string) {}, false); err != nil {
		return nil, err
	}
	return []figure{{name: "start/api-ready", value: time.Since(began).Seconds(), unit: "s", yardstick: "-", budget: 5}}, nil
}

// measurePods applies 30 pods and waits until all are Ready, against the same
// sandboxes and containers started by the Podman API directly, on the same hosts.
func measurePods(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, 0); err != nil {
		return nil, err
	}
	direct, err := b.directPods(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	took := time.Since(began)
	return []figure{
		{name: "pods/30-ready", value: took.Seconds(), unit: "s", yardstick: fmt.Sprintf("%.2f direct", direct.Seconds())},
		{name: "pods/30-ready-ratio", value: took.Seconds() / direct.Seconds(), unit: "x", yardstick: "Swarm 1.7", budget: 1.25},
	}, nil
}

// scale sets the sample's replicas and waits for exactly that many Ready pods.
func (b *bench) scale(ctx context.Context, n int) error {
	if _, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "scale", "deployment/hello", "--replicas", fmt.Sprint(n)); err != nil {
		return err
	}
	if n > 0 { // one watch, not a poll: a kubectl each moment would cost as much as the pods
		if _, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "wait", fmt.Sprintf("--for=jsonpath={.status.readyReplicas}=%d", n), "deployment/hello", "--timeout=180s"); err != nil {
			return err
		}
	}
	return b.until(ctx, 3*time.Minute, func() error {
		ready, total, err := b.ready(ctx, "h1", "")
		if err == nil && (ready != n || total != n) {
			err = fmt.Errorf("%d of %d pods are Ready, %d exist", ready, n, total)
		}
		return err
	})
}

// ready counts the sample's pods, and those that are Ready and not on the peer except.
func (b *bench) ready(ctx context.Context, host, except string) (ready, total int, err error) {
	out, err := b.lab.Run(ctx, host, "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName} {.metadata.deletionTimestamp}/{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if line == "" {
			continue
		}
		total++
		if strings.HasSuffix(line, " /True") && (except == "" || !strings.HasPrefix(line, except+" ")) {
			ready++
		}
	}
	return ready, total, nil
}

func (b *bench) until(ctx context.Context, within time.Duration, what func() error) error {
	for deadline := time.Now().Add(within); ; time.Sleep(300 * time.Millisecond) {
		err := what()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", within, err)
		}
	}
}

func (b *bench) directPods(ctx context.Context) (time.Duration, error) {
	var made sync.Map
	began := time.Now()
	var all sync.WaitGroup
	failures := make(chan error, replicas)
	for i := range replicas {
		host := b.lab.Peers()[i%len(b.lab.Peers())].Name
		rt, err := podman.New(podman.Config{Socket: b.lab.HostDir(host) + "/podman.sock", Owner: "bench", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return 0, err
		}
		all.Go(func() {
			id, err := directPod(ctx, rt, fmt.Sprintf("bench-%d", i), "counts", "serve")
			made.Store(id, rt)
			if err != nil {
				failures <- err
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	close(failures)
	var err error
	for err = range failures {
		break
	}
	made.Range(func(id, rt any) bool {
		all.Go(func() {
			if e := rt.(runtime.Runtime).RemoveSandbox(ctx, id.(string)); e != nil && err == nil {
				b.say("remove " + id.(string) + ": " + e.Error())
			}
		})
		return true
	})
	all.Wait()
	return took, err
}

// directPod starts a sandbox and a container for each role of the sample.
func directPod(ctx context.Context, rt runtime.Runtime, name string, roles ...string) (string, error) {
	box, err := rt.RunSandbox(ctx, runtime.SandboxSpec{Name: name, Hostname: name})
	if err != nil {
		return "", err
	}
	for _, role := range roles {
		id, err := rt.CreateContainer(ctx, box.ID, runtime.ContainerSpec{Name: name + "-" + role, Image: "localhost/hello:1", Args: []string{role}})
		if err != nil {
			return box.ID, err
		}
		if err := rt.StartContainer(ctx, id); err != nil {
			return box.ID, err
		}
	}
	return box.ID, nil
}
