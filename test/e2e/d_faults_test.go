package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// fault is one way to lose a peer, and the way back.
type fault struct {
	name   string
	victim func(*testing.T) string
	hurt   func(context.Context, string) error
	mend   func(context.Context, string) error
	// inside: pods on the other peers ask for the Service meanwhile, and for its pods by name.
	inside bool
}

func busiest(t *testing.T) string {
	count := map[string]int{}
	best := ""
	for _, p := range pods(t, "h1") {
		count[p.Spec.NodeName]++
		if best == "" || count[p.Spec.NodeName] > count[best] {
			best = p.Spec.NodeName
		}
	}
	return best
}

// Losing a peer, in each way, costs seconds and no data; when it is back it
// rejoins by itself and nothing is there twice. The budgets are measured by
// `make bench`; here the bounds are wide enough for a busy machine.
func TestLosingAPeer(t *testing.T) {
	start := func(ctx context.Context, h string) error { return shared.Start(ctx, h) }
	ingress(t)
	for _, f := range []fault{
		{"kill the leader's daemon", leader, shared.Kill, start, false},
		{"kill a follower's daemon", follower, shared.Kill, start, false},
		{"cut the peer with the most pods", busiest, shared.Cut, shared.Heal, true},
		{"crash a follower", follower, shared.Crash, start, false},
		{"crash the leader", leader, shared.Crash, start, false},
	} {
		t.Run(f.name, func(t *testing.T) { lose(t, f) })
	}
}

func lose(t *testing.T, f fault) {
	allReady(t, patience)
	spread(t, "h1")
	victim := f.victim(t)
	var others []string
	for _, h := range shared.Peers() {
		if h.Name != victim {
			others = append(others, h.Name)
		}
	}
	proxy, err := shared.Host(others[0])
	if err != nil {
		t.Fatal(err)
	}
	var asked fromInside
	if f.inside {
		asked = askFromInside(t, others, victim)
	}
	load := startLoad(t, others[0], serviceURL, 50, 30*time.Second)
	proxied := startLoad(t, "client", "http://"+proxy.IP+"/", 50, 30*time.Second)
	time.Sleep(time.Second) // the load runs before the fault
	at := time.Now()
	if f.inside {
		asked.awaitGone(t, at)
	}
	if err := f.hurt(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	written := "written-" + victim
	eventually(t, 90*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := shared.Run(ctx, others[0], "rookery", "-n", "hello", "create", "configmap", written)
		if err != nil && strings.Contains(err.Error(), "already exists") {
			return nil // by a try that had no answer: the leader went meanwhile
		}
		return err
	})
	writes := time.Since(at)
	if f.inside {
		eventually(t, patience, func() error { return leftOut(t, others[0], victim) })
	}
	eventually(t, patience, func() error {
		ready := 0
		for _, p := range pods(t, others[1]) {
			if p.ready() && p.Spec.NodeName != victim {
				ready++
			}
		}
		if ready < 9 {
			return fmt.Errorf("%d of 9 pods are Ready on the other peers", ready)
		}
		return nil
	})
	replaced := time.Since(at)
	if f.inside {
		asked.check(t, at)
	}
	r, through := load(), proxied()
	t.Logf("%s (%s): writes back after %.1fs, last failed request after %.1fs (%d of %d), replacements Ready after %.1fs",
		f.name, victim, writes.Seconds(), lastFailure(at, r).Seconds(), r.Failed, r.Sent, replaced.Seconds())
	failedSoon(t, "from "+others[0], at, r)
	t.Logf("through the Ingress of %s: last failed request after %.1fs (%d of %d)", others[0], lastFailure(at, through).Seconds(), through.Failed, through.Sent)
	failedSoon(t, "through the Ingress", at, through)
	if err := f.mend(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	allReady(t, patience)
	nothingTwice(t, victim)
	agree(t)
	sh(t, others[0], "rookery -n hello delete configmap "+written)
}

// fromInside is what pods on the peers that stay see of the loss of another.
type fromInside struct {
	victim string
	on     string                   // who asks DNS
	name   string                   // of the pods
	lost   []string                 // the answers that are the victim's pods
	loads  map[string]func() report // by peer
	gone   chan time.Duration       // how long DNS went on to name the victim's pods
}

// askFromInside begins 50 requests a second to the Service from a pod on each of the peers, once
// DNS names all its pods.
func askFromInside(t *testing.T, peers []string, victim string) fromInside {
	t.Helper()
	headless := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "each-" + victim}, Spec: corev1.ServiceSpec{
		ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "hello"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}},
	}}
	services := api(t).CoreV1().Services("hello")
	if _, err := services.Create(t.Context(), headless, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { services.Delete(context.Background(), headless.Name, metav1.DeleteOptions{}) })
	name := headless.Name + ".hello.svc.cluster.local. A"
	out := fromInside{victim: victim, on: peers[0], name: name, loads: map[string]func() report{}, gone: make(chan time.Duration, 1)}
	var all []string
	for _, p := range pods(t, peers[0]) {
		all = append(all, "A "+p.Status.PodIP)
		if p.Spec.NodeName == victim {
			out.lost = append(out.lost, "A "+p.Status.PodIP)
		}
	}
	slices.Sort(all)
	resolves(t, peers[0], "udp", clusterDNS, name, strings.Join(all, ", "))
	for _, peer := range peers {
		out.loads[peer] = startLoadIn(t, peer, loader(t, peer), serviceURL, 50, 30*time.Second)
	}
	return out
}

// awaitGone asks DNS from now on until it names pods, and none of the victim's, which is lost at
// that time.
func (f fromInside) awaitGone(t *testing.T, at time.Time) {
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ; t.Context().Err() == nil; <-tick.C {
			resp, err := lookUp(t.Context(), f.on, "udp", clusterDNS, f.name)
			if err != nil || resp.Rcode != dns.RcodeSuccess || len(resp.Answer) == 0 {
				continue
			}
			if !slices.ContainsFunc(rendered(resp), func(rr string) bool { return slices.Contains(f.lost, rr) }) {
				f.gone <- time.Since(at)
				return
			}
		}
	}()
}

// check wants that the pods of the victim, which was lost at that time, were left out soon.
func (f fromInside) check(t *testing.T, at time.Time) {
	t.Helper()
	select {
	case took := <-f.gone:
		t.Logf("DNS left the pods of %s out after %.1fs", f.victim, took.Seconds())
		if took > 20*time.Second {
			t.Errorf("DNS left the pods of %s out %s after it was lost", f.victim, took)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("DNS still names the pods of %s", f.victim)
	}
	for peer, load := range f.loads {
		r := load()
		t.Logf("from a pod on %s: last failed request after %.1fs (%d of %d)", peer, lastFailure(at, r).Seconds(), r.Failed, r.Sent)
		failedSoon(t, "from a pod on "+peer, at, r)
	}
}

// failedSoon wants requests to have failed only soon after that time, and pods to have answered.
func failedSoon(t *testing.T, from string, at time.Time, r report) {
	t.Helper()
	labtest.FailedSoon(t, "requests "+from, at, r.Sent, r.FailedBySecond, r.Errors)
	if len(r.Pods) == 0 {
		t.Errorf("requests %s: no pod has answered: %v", from, r.Errors)
	}
}

// lastFailure is how long after that time a request failed; 0: none did.
func lastFailure(at time.Time, r report) time.Duration {
	if r.Failed == 0 {
		return 0
	}
	return r.LastFailure.Sub(at)
}

// A daemon that is killed takes no request with it: its pods are reached as before, until they
// are let go of, and when it is back.
func TestKilledDaemonFailsNoRequest(t *testing.T) {
	allReady(t, patience)
	spread(t, "h1")
	victim := follower(t)
	var others []string
	for _, h := range shared.Peers() {
		if h.Name != victim {
			others = append(others, h.Name)
		}
	}
	pod := loader(t, others[1])
	loads := map[string]func() report{
		"peer": startLoad(t, others[0], serviceURL, 100, 20*time.Second),
		"pod":  startLoadIn(t, others[0], pod, serviceURL, 100, 20*time.Second),
	}
	time.Sleep(time.Second) // they run before the daemon is killed
	if err := shared.Kill(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		s, err := status(t.Context(), others[0])
		for _, p := range s.Peers {
			if p.Name == victim && p.State != "dead" {
				err = fmt.Errorf("%s is %s", victim, p.State)
			}
		}
		return err
	})
	if err := shared.Start(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	for from, report := range loads {
		r := report()
		t.Logf("from a %s: %d requests, %d failed, %d pods answered", from, r.Sent, r.Failed, len(r.Pods))
		labtest.NoneLost(t, "from a "+from, r.Sent, r.Failed, r.Errors)
	}
	allReady(t, patience)
	agree(t)
}

// leftOut wants `rookery net` to say of each pod of a lost peer that it gets no connections and
// why, and of all others that they get some.
func leftOut(t *testing.T, on, victim string) error {
	t.Helper()
	out, err := shared.Run(t.Context(), on, "rookery", "net", "hello/hello")
	if err != nil {
		return err
	}
	lost := 0
	for line := range strings.Lines(out) {
		switch there := strings.Contains(line, " "+victim+" "); {
		case !strings.Contains(line, " hello-"):
		case there && strings.Contains(line, "no: peer "+victim+" is dead"):
			lost++
		case there, strings.Contains(line, " no: "):
			return fmt.Errorf("%s is lost, and %s says:\n%s", victim, on, out)
		}
	}
	there := func(p pod) bool { return p.Spec.NodeName == victim }
	if lost == 0 && slices.ContainsFunc(pods(t, on), there) { // else they are gone already
		return fmt.Errorf("%s says nothing of the pods of %s:\n%s", on, victim, out)
	}
	return nil
}

// nothingTwice waits until what Podman runs on a peer is exactly what the API
// has bound to it.
func nothingTwice(t *testing.T, host string) {
	t.Helper()
	eventually(t, patience, func() error {
		wanted := map[string]bool{}
		all := pods(t, "h1")
		if len(all) != 9 {
			return fmt.Errorf("%d pods exist, not 9", len(all))
		}
		for _, p := range all {
			if p.Spec.NodeName == host {
				wanted[p.Metadata.UID] = true
			}
		}
		var actual []struct{ Name string }
		args := append([]string{"podman"}, shared.PodmanArgs(host)...)
		if err := shared.JSON(t.Context(), &actual, host, append(args, "pod", "ps", "--format", "json")...); err != nil {
			return err
		}
		if len(actual) != len(wanted) {
			return fmt.Errorf("%s runs %d pods, %d are bound to it", host, len(actual), len(wanted))
		}
		return nil
	})
}
