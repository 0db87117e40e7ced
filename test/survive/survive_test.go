// Package survive breaks one peer in every way that a machine at a site breaks, on
// the real binary with real Podman, and checks that its pods live through it. The
// tests share a lab of one peer and run in the order of the files; each leaves the
// peer healthy and without pods.
package survive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/test/lab"
	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// host is the only peer.
const host = "h1"

var (
	shared *lab.Lab
	api    kubernetes.Interface // of the peer
)

// patience is for machines that are slow or busy.
const patience = 4 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(labtest.Main(m, "sv", lab.Options{Peers: 1}, func(_ context.Context, l *lab.Lab) (err error) {
		shared = l
		api, err = l.API()
		return err
	}))
}

// try runs a command in the peer's host.
func try(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return shared.Run(ctx, host, argv...)
}

// must is try for what has to succeed.
func must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := try(t, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sh runs a command line, split at spaces.
func sh(t *testing.T, line string) string {
	t.Helper()
	return must(t, strings.Fields(line)...)
}

// podman runs a command of the host's Podman.
func podman(t *testing.T, line string) (string, error) {
	t.Helper()
	return try(t, append(append([]string{"podman"}, shared.PodmanArgs(host)...), strings.Fields(line)...)...)
}

// create makes the pod of a manifest, as soon as the API takes it: the default
// service account of a new cluster comes a moment later.
func create(t *testing.T, manifest string) {
	t.Helper()
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(manifest), p); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		_, err := api.CoreV1().Pods(v1.NamespaceDefault).Create(t.Context(), p, metav1.CreateOptions{})
		return err
	})
}

// remove deletes a pod and does not wait.
func remove(t *testing.T, name string) {
	t.Helper()
	if err := api.CoreV1().Pods(v1.NamespaceDefault).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

var eventually = labtest.Eventually

// pod is one of namespace default, as the API has it.
func pod(name string) (*v1.Pod, error) {
	return api.CoreV1().Pods(v1.NamespaceDefault).Get(context.Background(), name, metav1.GetOptions{})
}

// ready is nil if the pod runs and is Ready.
func ready(p *v1.Pod) error {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady && c.Status == v1.ConditionTrue && p.Status.Phase == v1.PodRunning {
			return nil
		}
	}
	status, err := json.Marshal(p.Status)
	return errors.Join(err, fmt.Errorf("pod %s is not Ready: %s", p.Name, status))
}

// waitReady waits until the pods of those names are Ready.
func waitReady(t *testing.T, within time.Duration, names ...string) {
	t.Helper()
	eventually(t, within, func() error {
		for _, name := range names {
			p, err := pod(name)
			if err != nil {
				return err
			}
			if err := ready(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// serving waits until the API answers, as after a start of the daemon.
func serving(t *testing.T) {
	t.Helper()
	eventually(t, patience, func() error {
		_, err := api.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(context.Background())
		return err
	})
}

// condition is one of the peer's Node.
func condition(kind v1.NodeConditionType) (v1.NodeCondition, error) {
	n, err := api.CoreV1().Nodes().Get(context.Background(), host, metav1.GetOptions{})
	if err != nil {
		return v1.NodeCondition{}, err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c, nil
		}
	}
	return v1.NodeCondition{}, fmt.Errorf("the node has no condition %s", kind)
}

// clear deletes all pods and waits until nothing of them is left in Podman.
func clear(t *testing.T) {
	t.Helper()
	grace := int64(1)
	all := api.CoreV1().Pods(v1.NamespaceDefault)
	if err := all.DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &grace}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 6*time.Minute, func() error {
		list, err := all.List(t.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods are left, one is %s", len(list.Items), list.Items[0].Name)
		}
		return err
	})
	eventually(t, 2*time.Minute, func() error {
		out, err := podman(t, "pod ps -q")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("Podman still has pods: %s", out)
		}
		return err
	})
}

// container is what Podman says of one.
type container struct {
	ID     string `json:"Id"`
	State  string
	Labels map[string]string
}

// containers lists what Podman has for a pod, infra containers left out, by the container's name.
func containers(t *testing.T, podName string) map[string][]container {
	t.Helper()
	out, err := podman(t, "ps -a --format json --filter label=io.kubernetes.container.name --filter label=io.kubernetes.pod.name="+podName)
	if err != nil {
		t.Fatal(err)
	}
	var list []container
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	all := map[string][]container{}
	for _, c := range list {
		name := c.Labels["io.kubernetes.container.name"]
		all[name] = append(all[name], c)
	}
	return all
}
