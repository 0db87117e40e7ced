package services

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func BenchmarkCompute(b *testing.B) {
	services, endpointSlices := objects(b, 5000)
	var c computer
	c.desired(services, byService(endpointSlices), nil, alive, self())
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		endpointSlices[7] = slice(b, corev1.ProtocolTCP, fmt.Sprintf("d/s0007 8080 10.42.1.%d@a", 2+i%200))
		c.desired(services, byService(endpointSlices), nil, alive, self())
	}
}
