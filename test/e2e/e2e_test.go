// Package e2e executes what Rookery promises on the real binary, with real
// Podman, in the lab: three peers and a machine beside them. The tests share one
// lab and run in the order of the files; each leaves it healthy.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/test/lab"
	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// report mirrors what `hello load` prints.
type report struct {
	Sent, Failed              int
	Pods                      map[string]int
	FirstFailure, LastFailure time.Time
	Errors                    map[string]int
	FailedBySecond            map[int64]int
}

// shared is the lab of three peers with the sample on it.
var shared *lab.Lab

// flags are those of `rookery up` with which the peers are started.
var flags = []string{"--lan-zone", "home.arpa", "--unsafe-sysctls", "net.core.somaxconn"}

func TestMain(m *testing.M) {
	os.Exit(labtest.Main(m, "e2e", lab.Options{Peers: 3, Flags: flags}, func(ctx context.Context, l *lab.Lab) error {
		shared = l
		if out, err := l.Run(ctx, "h1", "rookery", "apply", "-f", sample()); err != nil {
			return fmt.Errorf("apply the sample: %w %s", err, out)
		}
		return nil
	}))
}

func sample() string {
	path, err := filepath.Abs("../../configs/samples/hello.yaml")
	if err != nil {
		panic(err)
	}
	return path
}

// must runs a command in a host and fails the test unless it succeeds.
func must(t *testing.T, host string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := shared.Run(ctx, host, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sh runs a command line, split at spaces, in a host.
func sh(t *testing.T, host, line string) string {
	t.Helper()
	return must(t, host, strings.Fields(line)...)
}

// refused runs a command that has to fail, and returns what it said.
func refused(t *testing.T, host string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := shared.Run(ctx, host, argv...)
	if err == nil {
		t.Fatalf("%v succeeded, it should have been refused: %s", argv, out)
	}
	return out
}

var eventually = labtest.Eventually

type pod struct {
	Metadata struct {
		Name, UID         string
		DeletionTimestamp *string
		OwnerReferences   []struct{ Name string }
	}
	Spec   struct{ NodeName string }
	Status struct {
		PodIP             string
		Conditions        []struct{ Type, Status string }
		ContainerStatuses []struct {
			Name, ContainerID string
			RestartCount      int
		}
	}
}

func (p pod) ready() bool {
	if p.Metadata.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// pods lists the sample's pods as host sees them.
func pods(t *testing.T, host string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	if err := shared.JSON(t.Context(), &list, host, "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// scale sets the sample's replicas and waits until that many are Ready and no other is left.
func scale(t *testing.T, host string, n int) []pod {
	t.Helper()
	sh(t, host, fmt.Sprintf("rookery -n hello scale deployment/hello --replicas %d", n))
	var all []pod
	eventually(t, 2*time.Minute, func() error {
		all = pods(t, host)
		ready := 0
		for _, p := range all {
			if p.ready() {
				ready++
			}
		}
		if ready != n || len(all) != n {
			return fmt.Errorf("%d of %d pods are Ready, %d exist", ready, n, len(all))
		}
		return nil
	})
	return all
}

// spread starts nine pods anew, so that they are on all three peers again after
// one was lost: nothing moves a running pod.
func spread(t *testing.T, host string) []pod {
	t.Helper()
	scale(t, host, 0)
	return scale(t, host, 9)
}

// allReady waits until every peer is a Ready node.
func allReady(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		out, err := shared.Run(t.Context(), "h1", "rookery", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || strings.Count(out, "True") != 3 {
			return fmt.Errorf("Ready nodes: %s %v", out, err)
		}
		return nil
	})
}

// startLoad begins requests at a fixed rate from a host; the function that it
// returns waits for their end and reports.
func startLoad(t *testing.T, host, url string, rate int, length time.Duration) func() report {
	t.Helper()
	return startReport(t, host, shared.Bin+"/hello", "load", "-rate", fmt.Sprint(rate), "-for", length.String(), url)
}

// startLoadIn is startLoad from inside a pod of [loader]; via is a peer that stays.
func startLoadIn(t *testing.T, via, pod, url string, rate int, length time.Duration) func() report {
	t.Helper()
	return startReport(t, via, "rookery", "-n", "hello", "exec", pod, "--", "/hello", "load", "-rate", fmt.Sprint(rate), "-for", length.String(), url)
}

func startReport(t *testing.T, host string, argv ...string) func() report {
	t.Helper()
	cmd, err := shared.Command(context.Background(), host, argv...)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() report {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("load: %v %s", err, out.String())
		}
		return decode(t, out.String())
	}
}

// loader starts a pod on a peer that does nothing but [startLoadIn], until the test ends.
func loader(t *testing.T, peer string) string {
	t.Helper()
	client, name := api(t).CoreV1().Pods("hello"), "loader-"+peer
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "loader"}}, Spec: corev1.PodSpec{
		NodeName: peer, TerminationGracePeriodSeconds: ptr.To(int64(0)),
		Containers: []corev1.Container{{Name: "c", Image: "localhost/hello:1", Args: []string{"serve"}}},
	}}
	if _, err := client.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Delete(context.Background(), name, metav1.DeleteOptions{})
		eventually(t, patience, func() error {
			if _, err := client.Get(context.Background(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s is still there: %v", name, err)
			}
			return nil
		})
	})
	eventually(t, 2*time.Minute, func() error {
		p, err := client.Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("%s is %s", name, p.Status.Phase)
		}
		return err
	})
	return name
}

// ingress leads every host to the sample until the test ends; it waits until each peer serves it.
func ingress(t *testing.T) {
	t.Helper()
	client := api(t).NetworkingV1().Ingresses("hello")
	all := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: networkingv1.IngressSpec{DefaultBackend: &networkingv1.IngressBackend{
		Service: &networkingv1.IngressServiceBackend{Name: "hello", Port: networkingv1.ServiceBackendPort{Name: "http"}},
	}}}
	if _, err := client.Create(t.Context(), all, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Delete(context.Background(), all.Name, metav1.DeleteOptions{}) })
	for _, h := range shared.Peers() {
		eventually(t, patience, func() error {
			_, err := shared.Run(t.Context(), lab.Client, shared.Bin+"/hello", "get", "http://"+h.IP+"/")
			return err
		})
	}
}

type peerStatus struct {
	Quorum   bool
	Missing  []string
	Leader   string
	Revision int64
	Digest   string
	Network  string
	Change   string
	Peers    []struct{ Name, Address, State, Role string }
}

func status(ctx context.Context, host string) (s peerStatus, err error) {
	err = shared.JSON(ctx, &s, host, "rookery", "status", "--json")
	return s, err
}

// agree waits until all peers are at one revision with one state.
func agree(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		var seen []string
		for _, h := range shared.Peers() {
			s, err := status(t.Context(), h.Name)
			if err != nil {
				return err
			}
			seen = append(seen, fmt.Sprintf("%d %s", s.Revision, s.Digest))
		}
		if seen[0] != seen[1] || seen[1] != seen[2] {
			return fmt.Errorf("states differ: %v", seen)
		}
		return nil
	})
}

func leader(t *testing.T) string {
	t.Helper()
	var name string
	eventually(t, patience, func() error {
		s, err := status(t.Context(), "h1")
		if err == nil && s.Leader == "" {
			err = fmt.Errorf("there is no leader")
		}
		name = s.Leader
		return err
	})
	return name
}

func follower(t *testing.T) string {
	t.Helper()
	l := leader(t)
	for _, h := range shared.Peers() {
		if h.Name != l {
			return h.Name
		}
	}
	return ""
}

func decode(t *testing.T, out string) (r report) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return r
}
