package main

import (
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/cluster"
)

// TestMetricsAreDocumented: docs/operations.md lists what /metrics has, no more and no less.
func TestMetricsAreDocumented(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newPeerMetrics(func() observed {
		return observed{peers: map[cluster.State]int{cluster.StateAlive: 3}, podsByPhase: map[corev1.PodPhase]int{corev1.PodRunning: 2}, podsReady: 2}
	}))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "| `rookery_"); ok {
			documented["rookery_"+strings.FieldsFunc(name, func(r rune) bool { return r == '`' || r == '{' })[0]] = true
		}
	}
	for _, f := range families {
		if !documented[f.GetName()] {
			t.Errorf("%s is not documented", f.GetName())
		}
		delete(documented, f.GetName())
	}
	for name := range documented {
		t.Errorf("%s is documented and does not exist", name)
	}
}
