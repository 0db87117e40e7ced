package kubestore

import (
	"testing"

	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/utils/clock"
)

// The benchmarks of the suite, in its smallest size: 10 namespaces of 100 pods.
func benchmarkData() storagetesting.BenchmarkData {
	return storagetesting.PrepareBenchmarkData(10, 100, 10)
}

func BenchmarkSuiteWriteThroughput(b *testing.B) {
	h := newHarness(b, openMemory, false)
	storagetesting.RunBenchmarkWriteThroughput(h.ctx, b, h, benchmarkData(), false, storagetesting.NewWatchLatencyTracker(clock.RealClock{}))
}

func BenchmarkSuiteList(b *testing.B) {
	h := newHarness(b, openMemory, false)
	data := benchmarkData()
	if err := storagetesting.PrecreateBenchmarkPods(h.ctx, h, data); err != nil {
		b.Fatal(err)
	}
	storagetesting.RunBenchmarkStoreList(h.ctx, b, h, data, false)
}

func BenchmarkSuiteStats(b *testing.B) {
	h := newHarness(b, openMemory, false)
	data := benchmarkData()
	if err := storagetesting.PrecreateBenchmarkPods(h.ctx, h, data); err != nil {
		b.Fatal(err)
	}
	storagetesting.RunBenchmarkStoreStats(h.ctx, b, h)
}
