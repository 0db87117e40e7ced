package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// A rolling update and its undo, under 200 requests a second from a peer, from
// the LAN, from a pod and through the Ingress, fail no request.
func TestRolloutFailsNoRequest(t *testing.T) {
	scale(t, "h1", 6)
	pod := loader(t, "h3")
	ingress(t)
	for _, step := range []struct{ change, image string }{
		{"set image deployment/hello hello=localhost/hello:2", "localhost/hello:2"},
		{"rollout undo deployment/hello", "localhost/hello:1"},
	} {
		host := startLoad(t, "h2", serviceURL, 50, 40*time.Second)
		lan := startLoad(t, "client", "http://"+shared.Hosts[2].IP+":30080/", 50, 40*time.Second)
		inside := startLoadIn(t, "h1", pod, serviceURL, 50, 40*time.Second)
		proxied := startLoad(t, "client", "http://"+shared.Hosts[1].IP+"/", 50, 40*time.Second)
		time.Sleep(time.Second) // so that the load runs before the update begins
		sh(t, "h1", "rookery -n hello "+step.change)
		sh(t, "h1", "rookery -n hello rollout status deployment/hello --timeout=170s")
		for where, r := range map[string]report{"host": host(), "lan": lan(), "pod": inside(), "ingress": proxied()} {
			t.Logf("%s: %s: %d requests, %d failed, %d pods", step.change, where, r.Sent, r.Failed, len(r.Pods))
			labtest.NoneLost(t, step.change+": from "+where, r.Sent, r.Failed, r.Errors)
		}
		eventually(t, patience, func() error { // the last of the old ones may still be ending
			got, err := shared.Run(t.Context(), "h1", "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].spec.containers[0].image}")
			if err == nil && strings.Contains(strings.ReplaceAll(got, step.image, ""), "localhost/hello") {
				err = fmt.Errorf("after %s the images are %s", step.change, got)
			}
			return err
		})
	}
}
