package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// The node proxy leads to the agent and to nothing beside it: requests are made with
// the certificate of the peer, for which the port has much more.
func TestNodeProxyStaysWithTheAgent(t *testing.T) {
	port := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s?%s", r.Method, r.URL.Path, r.URL.RawQuery)
	}))
	t.Cleanup(port.Close)
	at, err := url.Parse(port.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Kubelet = func(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
			if node != "n1" {
				return nil, nil, fmt.Errorf("no address of peer %s is known", node)
			}
			// The test's port is on loopback, which the proxy refuses by name.
			return &url.URL{Scheme: "http", Host: "192.0.2.7:6443"}, rewired{at.Host}, nil
		}
	})
	ctx := t.Context()
	if _, err := p.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"n1/proxy/healthz": "GET /agent/healthz?",
		"n1/proxy/containerLogs/default/a/web?tailLines=3": "GET /agent/containerLogs/default/a/web?tailLines=3",
		"n1:6443/proxy/pods":         "GET /agent/pods?",
		"n1/proxy/rookery/v1/tokens": "GET /agent/rookery/v1/tokens?",
	} {
		raw, err := p.admin.CoreV1().RESTClient().Get().RequestURI("/api/v1/nodes/" + path).DoRaw(ctx)
		if have := string(raw); err != nil || have != want {
			t.Errorf("%s: %q, %v, want %q", path, have, err, want)
		}
	}
	// Nor does a path that climbs.
	for _, path := range []string{"n1/proxy/..%2f..%2frookery/v1/tokens", "n1/proxy/%2e%2e/api/v1/secrets", "n1/proxy//rookery/v1/tokens"} {
		raw, err := p.admin.CoreV1().RESTClient().Get().RequestURI("/api/v1/nodes/" + path).DoRaw(ctx)
		if !apierrors.IsNotFound(err) && !strings.HasPrefix(string(raw), "GET /agent/") {
			t.Errorf("%s: %q, %v", path, raw, err)
		}
	}
	raw, err := p.admin.CoreV1().RESTClient().Get().RequestURI("/api/v1/nodes/n2/proxy/healthz").DoRaw(ctx)
	if !apierrors.IsServiceUnavailable(err) {
		t.Errorf("a node that is not there: %q, %v", raw, err)
	}
}

// rewired sends everything to one address.
type rewired struct{ host string }

func (r rewired) RoundTrip(req *http.Request) (*http.Response, error) {
	req.URL.Host = r.host
	return http.DefaultTransport.RoundTrip(req)
}

// Ephemeral containers and resources change by their subresources, and only by those.
func TestEphemeralContainersAndResize(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, pods := t.Context(), p.admin.CoreV1().Pods("default")
	pod := aPod("a")
	pod.Spec.NodeName = "n1"
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}
	if _, err := p.admin.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "look", Image: "i"}, TargetContainerName: pod.Spec.Containers[0].Name}}
	if _, err := pods.Update(ctx, pod, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an ephemeral container by an update: %v", err)
	}
	if pod, err = pods.UpdateEphemeralContainers(ctx, "a", pod, metav1.UpdateOptions{}); err != nil || len(pod.Spec.EphemeralContainers) != 1 {
		t.Fatalf("an ephemeral container by its subresource: %v", err)
	}
	more := []byte(fmt.Sprintf(`{"spec":{"containers":[{"name":%q,"resources":{"requests":{"cpu":"200m"}}}]}}`, pod.Spec.Containers[0].Name))
	if _, err := pods.Patch(ctx, "a", types.StrategicMergePatchType, more, metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("other resources by a patch: %v", err)
	}
	if pod, err = pods.Patch(ctx, "a", types.StrategicMergePatchType, more, metav1.PatchOptions{}, "resize"); err != nil || pod.Spec.Containers[0].Resources.Requests.Cpu().String() != "200m" {
		t.Errorf("other resources by resize: %v, %v", pod, err)
	}
}
