package apifuzz

import (
	"net/http"
	"testing"
	"time"
)

// What TestFuzz has found in our code, in words.
func TestFound(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name, target string
		code         int
	}{
		{"the proxy of a Service whose name none can have", "/api/v1/namespaces/default/services/%C3%BC/proxy/", http.StatusServiceUnavailable},
		{"the proxy of a Service in a namespace that none can be", "/api/v1/namespaces/%252e%252e/services/f0/proxy/", http.StatusServiceUnavailable},
		{"a read that has no time at all is late, not without quorum", "/api/v1/namespaces/default/configmaps?timeout=1ns", http.StatusGatewayTimeout},
		{"so is the question what a node uses", "/apis/metrics.k8s.io/v1beta1/nodes/f2?timeout=1ns", http.StatusGatewayTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := w.ask(call{caller: "admin", method: "GET", target: tt.target, patience: 10 * time.Second})
			if a.code != tt.code {
				t.Errorf("%d, want %d: %s %v", a.code, tt.code, a.body, a.err)
			}
		})
	}
}
