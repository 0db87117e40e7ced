package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rundigitalplatform/rookery/dnsserver"
	"github.com/rundigitalplatform/rookery/ingress"
	"github.com/rundigitalplatform/rookery/network/policy"
	"github.com/rundigitalplatform/rookery/network/refused"
)

// TestMetricsAreDocumented: docs/operations.md lists what /metrics has, no more and no less.
func TestMetricsAreDocumented(t *testing.T) {
	descs := make(chan *prometheus.Desc, 100)
	for _, c := range []prometheus.Collector{newPeerMetrics(func() observed { return observed{} }), dnsserver.NewMetrics(), ingress.NewMetrics(), refused.New(refused.Config{}), &policy.Controller{}, newMeteredNetwork(nil)} {
		c.Describe(descs)
	}
	close(descs)
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
	for d := range descs {
		name := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1]
		if !documented[name] {
			t.Errorf("%s is not documented", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("%s is documented and does not exist", name)
	}
}
