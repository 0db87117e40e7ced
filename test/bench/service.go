package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// measureService compares a Service's throughput with that of the pod's own
// address: the same two pods, on two peers, through one then the other.
func measureService(ctx context.Context, b *bench) ([]figure, error) {
	for _, n := range []int{0, len(b.lab.Peers())} { // anew, so that there is one on each peer
		if err := b.scale(ctx, n); err != nil {
			return nil, err
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
		return nil, err
	}
	from, to := list.Items[0], list.Items[1]
	if from.Spec.NodeName == to.Spec.NodeName {
		return nil, fmt.Errorf("the pods are both on %s", to.Spec.NodeName)
	}
	// A Service of its own with that one pod behind it.
	if _, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "label", "--overwrite", "pod", to.Metadata.Name, "bench=target"); err != nil {
		return nil, err
	}
	manifest := b.lab.Dir + "/bench-service.yaml"
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: bench, namespace: hello}\nspec: {selector: {bench: target}, ports: [{port: 80, targetPort: 8080}]}\n"
	if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if _, err := b.lab.Run(ctx, "h1", "rookery", "apply", "-f", manifest); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	pull := func(url string) (float64, error) {
		out, err := b.lab.Run(ctx, "h1", "rookery", "-n", "hello", "exec", from.Metadata.Name, "-c", "hello", "--", "/hello", "pull", "-for", "3s", url)
		if err != nil {
			return 0, err
		}
		var r struct{ BytesPerSecond float64 }
		err = json.Unmarshal([]byte(strings.TrimSpace(out)), &r)
		return r.BytesPerSecond * 8 / 1e9, err
	}
	var service, pod float64
	const rounds = 3
	for range rounds { // in turn, so that a noisy moment hits both
		p, err := pull(fmt.Sprintf("http://%s:8080/bulk", to.Status.PodIP))
		if err != nil {
			return nil, err
		}
		s, err := pull("http://bench/bulk")
		if err != nil {
			return nil, err
		}
		pod, service = pod+p/rounds, service+s/rounds
	}
	return []figure{
		{name: "service/throughput", value: service, unit: "Gbit/s", yardstick: fmt.Sprintf("%.2f pod", pod)},
		{name: "service/throughput-ratio", value: service / pod, unit: "x", yardstick: "-", budget: 0.95, atLeast: true},
	}, nil
}
