package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// pulled is what `hello pull` prints.
type pulled struct{ BytesPerSecond, RequestsPerSecond, Median, P99 float64 }

// podAt is a pod of the sample, as far as packets are concerned.
type podAt struct{ name, peer, ip string }

// twoPods are two of the sample's pods on two peers, the second one behind a Service of its own.
func (b *bench) twoPods(ctx context.Context) (from, to podAt, err error) {
	for _, n := range []int{0, len(b.lab.Peers())} { // anew, so that there is one on each peer
		if err := b.scale(ctx, n); err != nil {
			return from, to, err
		}
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIP string }
		}
	}
	if err := b.lab.JSON(ctx, &list, "h1", "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "-o", "json"); err != nil {
		return from, to, err
	}
	pod := func(i int) podAt {
		p := list.Items[i]
		return podAt{p.Metadata.Name, p.Spec.NodeName, p.Status.PodIP}
	}
	if from, to = pod(0), pod(1); from.peer == to.peer {
		return from, to, fmt.Errorf("the pods are both on %s", to.peer)
	}
	if _, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "label", "--overwrite", "pod", to.name, "bench=target"); err != nil {
		return from, to, err
	}
	manifest := b.lab.Dir + "/bench-service.yaml"
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: bench, namespace: hello}\nspec: {selector: {bench: target}, ports: [{port: 80, targetPort: 8080}]}\n"
	if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
		return from, to, err
	}
	if _, err := b.lab.Run(ctx, "h1", "rookery", "apply", "-f", manifest); err != nil {
		return from, to, err
	}
	return from, to, b.settle(ctx, 2*time.Second)
}

// pull reads a URL in a pod of the sample.
func (b *bench) pull(ctx context.Context, from podAt, args ...string) (r pulled, err error) {
	err = b.lab.JSON(ctx, &r, "h1", append([]string{"rookery", "-n", "hello", "exec", from.name, "-c", "hello", "--", "/hello", "pull"}, args...)...)
	return r, err
}

// path is how a pod's web server is reached.
type path struct {
	pull func(args ...string) (pulled, error)
	base string // URL
}

// speed is what a path does: bits a second of one connection, requests a second of 16 clients
// with a connection for each, and the median time of one that is alone.
type speed struct{ gbits, requests, median float64 }

// race measures paths in turn, so that a noisy moment hits all, and returns the means.
func race(rounds int, paths ...path) ([]speed, error) {
	out := make([]speed, len(paths))
	for range rounds {
		for i, p := range paths {
			bulk, err := p.pull("-for", "2s", p.base+"/bulk")
			if err != nil {
				return nil, err
			}
			many, err := p.pull("-for", "2s", "-clients", "16", "-fresh", p.base+"/readyz")
			if err != nil {
				return nil, err
			}
			one, err := p.pull("-for", "1s", "-fresh", p.base+"/readyz")
			if err != nil {
				return nil, err
			}
			n := float64(rounds)
			out[i].gbits += bulk.BytesPerSecond * 8 / 1e9 / n
			out[i].requests += many.RequestsPerSecond / n
			out[i].median += one.Median * 1e6 / n
		}
	}
	return out, nil
}

// measureService compares a Service with the pod's own address: the same two pods, on two
// peers, through one then the other.
func measureService(ctx context.Context, b *bench) ([]figure, error) {
	from, to, err := b.twoPods(ctx)
	if err != nil {
		return nil, err
	}
	pull := func(args ...string) (pulled, error) { return b.pull(ctx, from, args...) }
	// By its address: what its name costs is the figures of dns.
	service, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "get", "service", "bench", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return nil, err
	}
	got, err := race(3, path{pull, "http://" + to.ip + ":8080"}, path{pull, "http://" + service})
	if err != nil {
		return nil, err
	}
	pod, through := got[0], got[1]
	return []figure{
		{name: "service/throughput", value: through.gbits, unit: "Gbit/s", yardstick: fmt.Sprintf("%.2f pod", pod.gbits)},
		{name: "service/throughput-ratio", value: through.gbits / pod.gbits, unit: "x", yardstick: "the pod's address", budget: 0.95, atLeast: true},
		{name: "service/requests", value: through.requests, unit: "1/s", yardstick: fmt.Sprintf("%.0f pod", pod.requests)},
		{name: "service/requests-ratio", value: through.requests / pod.requests, unit: "x", yardstick: "the pod's address", budget: 0.85, atLeast: true},
		{name: "service/latency", value: through.median, unit: "us", yardstick: fmt.Sprintf("%.0f pod", pod.median)},
		{name: "service/latency-ratio", value: through.median / pod.median, unit: "x", yardstick: "the pod's address", budget: 1.25},
	}, nil
}

// measureOverlay compares the backends, from pod to pod, with the cable between the same two hosts.
func measureOverlay(ctx context.Context, b *bench) (figures []figure, err error) {
	from, to, err := b.twoPods(ctx)
	if err != nil {
		return nil, err
	}
	host, err := b.lab.Host(to.peer)
	if err != nil {
		return nil, err
	}
	end, err := b.background(ctx, host.Name, b.lab.Bin+"/hello", "serve")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	cable := path{func(args ...string) (r pulled, err error) {
		err = b.lab.JSON(ctx, &r, from.peer, append([]string{b.lab.Bin + "/hello", "pull"}, args...)...)
		return r, err
	}, "http://" + host.IP + ":8080"}
	if err := b.until(ctx, 20*time.Second, func() error { _, err := cable.pull("-for", "10ms", cable.base+"/readyz"); return err }); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.use(ctx, "wireguard")) }()
	// What a pod's path costs without any tunnel is direct's; userspace WireGuard encrypts on the same two cores.
	budgets := map[string]float64{"vxlan": 0.3, "direct": 0.5}
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		if err := b.use(ctx, backend); err != nil {
			return nil, err
		}
		got, err := race(2, cable, path{func(args ...string) (pulled, error) { return b.pull(ctx, from, args...) }, "http://" + to.ip + ":8080"})
		if err != nil {
			return nil, fmt.Errorf("over %s: %w", backend, err)
		}
		bare, pod := got[0], got[1]
		figures = append(figures,
			figure{name: "overlay/" + backend, value: pod.gbits, unit: "Gbit/s", yardstick: fmt.Sprintf("%.2f the cable", bare.gbits)},
			figure{name: "overlay/" + backend + "-ratio", value: pod.gbits / bare.gbits, unit: "x", yardstick: "the cable", budget: budgets[backend], atLeast: true},
			figure{name: "overlay/" + backend + "-requests", value: pod.requests, unit: "1/s", yardstick: fmt.Sprintf("%.0f the cable", bare.requests)},
			figure{name: "overlay/" + backend + "-latency", value: pod.median, unit: "us", yardstick: fmt.Sprintf("%.0f the cable", bare.median)},
		)
	}
	return figures, nil
}

// use changes the backend and waits until every peer has followed.
func (b *bench) use(ctx context.Context, backend string) error {
	if _, err := b.lab.Run(ctx, "h1", "rookery", "net", "use", backend); err != nil {
		return err
	}
	return b.until(ctx, time.Minute, func() error {
		for _, h := range b.lab.Peers() {
			var s struct{ Network, Change string }
			if err := b.lab.JSON(ctx, &s, h.Name, "rookery", "status", "--json"); err != nil {
				return err
			}
			if s.Network != backend || s.Change != "" {
				return fmt.Errorf("%s uses %s", h.Name, s.Network)
			}
		}
		return nil
	})
}

// background starts a command in a host; the function that it returns ends it.
func (b *bench) background(ctx context.Context, host string, argv ...string) (end func() error, err error) {
	// What enters the host's namespaces for it is its parent.
	cmd, err := b.lab.Command(ctx, host, append([]string{"setpriv", "--pdeathsig", "KILL"}, argv...)...)
	if err != nil {
		return nil, err
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		if err := cmd.Process.Kill(); err != nil {
			return fmt.Errorf("%s: %v has ended: %w: %s", host, argv, err, said.String())
		}
		_ = cmd.Wait() // it was killed
		return nil
	}, nil
}
