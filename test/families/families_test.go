// Package families executes clusters of two IP families, and of IPv6 alone, on the real
// binary with real Podman. Every other test over the lab has one of IPv4.
package families

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab"
	"github.com/rundigitalplatform/rookery/test/lab/labtest"
)

// world is a lab of three peers with the sample on it.
type world struct {
	t   *testing.T
	lab *lab.Lab
}

func start(t *testing.T, name string, o lab.Options) world {
	t.Helper()
	o.Peers = 3
	w := world{t, labtest.Start(t, name, o)}
	sample, err := filepath.Abs("../../configs/samples/hello.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.sh("h1", "rookery apply -f "+sample)
	w.sh("h1", "rookery -n hello rollout status deployment/hello --timeout=3m") // Ready: the probes reach it
	return w
}

// sh runs a command line, split at spaces, in a host and fails the test unless it succeeds.
func (w world) sh(host, line string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 4*time.Minute)
	defer cancel()
	out, err := w.lab.Run(ctx, host, strings.Fields(line)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// shows runs a command line until what it prints has all of these.
func (w world) shows(host, line string, want ...string) {
	w.t.Helper()
	labtest.Eventually(w.t, 2*time.Minute, func() error {
		out, err := w.lab.Run(w.t.Context(), host, strings.Fields(line)...)
		for _, s := range want {
			if err == nil && !strings.Contains(out, s) {
				err = fmt.Errorf("%s printed %q, want %q", line, out, s)
			}
		}
		return err
	})
}

type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp *string
	}
	Spec   struct{ NodeName string }
	Status struct{ PodIPs, HostIPs []struct{ IP string } }
}

// pods are the sample's three, on at least two peers; without those that are to end.
func (w world) pods() []pod {
	w.t.Helper()
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(w.sh("h1", "rookery -n hello get pods -l app=hello -o json")), &list); err != nil {
		w.t.Fatal(err)
	}
	list.Items = slices.DeleteFunc(list.Items, func(p pod) bool { return p.Metadata.DeletionTimestamp != nil })
	peers := map[string]bool{}
	for _, p := range list.Items {
		peers[p.Spec.NodeName] = true
	}
	if len(list.Items) != 3 || len(peers) < 2 {
		w.t.Fatalf("%d pods on %d peers", len(list.Items), len(peers))
	}
	return list.Items
}

// served waits until every pod of the sample has answered at a URL and no request failed.
// asker is where the request comes from: a host, or "POD in HOST".
func (w world) served(asker, url string) {
	w.t.Helper()
	host, command := asker, w.lab.Bin+"/hello"
	if pod, at, ok := strings.Cut(asker, " in "); ok {
		host, command = at, "rookery -n hello exec "+pod+" -c hello -- /hello"
	}
	labtest.Eventually(w.t, 2*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
		defer cancel()
		out, err := w.lab.Run(ctx, host, strings.Fields(command+" load -rate 20 -for 2s "+url)...)
		if err != nil {
			return err
		}
		var got struct {
			Sent, Failed int
			Pods         map[string]int
			Errors       map[string]int
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			return fmt.Errorf("%w in %s", err, out)
		}
		if got.Failed > 0 || len(got.Pods) != 3 {
			return fmt.Errorf("%s from %s: %+v", url, asker, got)
		}
		return nil
	})
}

// reachable asks for the sample from everywhere: pods and hosts by each Service address,
// the LAN by each peer's.
func (w world) reachable(clusterIPs, peers []string) {
	w.t.Helper()
	for _, ip := range clusterIPs {
		for _, p := range w.pods() {
			w.served(p.Metadata.Name+" in h1", "http://"+net.JoinHostPort(ip, "80")+"/")
		}
		w.served("h2", "http://"+net.JoinHostPort(ip, "80")+"/")
	}
	for _, ip := range peers {
		w.served(lab.Client, "http://"+net.JoinHostPort(ip, "30080")+"/")
	}
}

func (w world) clusterIPs() []string {
	w.t.Helper()
	return strings.Fields(w.sh("h2", "rookery -n hello get service hello -o jsonpath={.spec.clusterIPs[*]}"))
}

// slices waits until the Service has slices of these families with three pods in each.
func (w world) slices(want ...string) {
	w.t.Helper()
	labtest.Eventually(w.t, 2*time.Minute, func() error {
		var list struct {
			Items []struct {
				AddressType string
				Endpoints   []struct{ Addresses []string }
			}
		}
		if err := w.lab.JSON(w.t.Context(), &list, "h3", strings.Fields("rookery -n hello get endpointslices -l kubernetes.io/service-name=hello -o json")...); err != nil {
			return err
		}
		var got []string
		for _, s := range list.Items {
			if len(s.Endpoints) == 3 {
				got = append(got, s.AddressType)
			}
		}
		if slices.Sort(got); len(list.Items) != len(want) || !slices.Equal(got, want) {
			return fmt.Errorf("slices: %+v", list)
		}
		return nil
	})
}

func TestDualStack(t *testing.T) {
	w := start(t, "dual", lab.Options{Flags: []string{"--pod-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112"}})
	var peers []string
	for i, h := range w.lab.Peers() {
		peers = append(peers, h.IP, h.IPv6)
		w.shows("h1", "rookery get node "+h.Name+" -o jsonpath={.status.addresses[*].address}|{.spec.podCIDRs[*]}", h.IP+" "+h.IPv6+" "+h.Name)
		w.shows("h2", "rookery peers", h.IP+","+h.IPv6)
		w.shows("client", "rookery --server https://["+h.IPv6+"]:6443 get node "+h.Name+" -o wide", h.IP)
		if share := fmt.Sprintf("fd42:0:0:%d::/64", i); i > 0 { // whoever joined first
			w.shows("h1", "rookery get nodes -o jsonpath={.items[*].spec.podCIDRs[1]}", share)
		}
	}
	for _, p := range w.pods() {
		if ips := p.Status.PodIPs; len(ips) != 2 || !strings.HasPrefix(ips[0].IP, "10.42.") || !strings.HasPrefix(ips[1].IP, "fd42:") || len(p.Status.HostIPs) != 2 {
			t.Errorf("addresses of %s: %+v", p.Metadata.Name, p.Status)
		} else {
			w.shows("h1", "rookery -n hello exec "+p.Metadata.Name+" -c hello -- /hello get http://"+net.JoinHostPort(ips[1].IP, "8080"), p.Metadata.Name)
			w.shows("h1", "rookery -n hello describe pod "+p.Metadata.Name, ips[0].IP, ips[1].IP)
		}
	}

	// A Service begins with the first family, gets the other one, and gives it back.
	if ips := w.clusterIPs(); len(ips) != 1 || !strings.HasPrefix(ips[0], "10.43.") {
		t.Fatalf("the Service of one family has %v", ips)
	}
	w.reachable(w.clusterIPs(), []string{w.lab.Hosts[0].IP})
	w.sh("h2", `rookery -n hello patch service hello -p {"spec":{"ipFamilyPolicy":"RequireDualStack"}}`)
	ips := w.clusterIPs()
	if len(ips) != 2 || !strings.HasPrefix(ips[1], "fd43::") {
		t.Fatalf("the Service of both families has %v", ips)
	}
	w.slices("IPv4", "IPv6")
	w.shows("h3", "rookery -n hello describe service hello", "RequireDualStack", "IPv4,IPv6", ips[0]+","+ips[1])
	w.reachable(ips, peers)

	w.sh("h2", `rookery -n hello patch service hello -p {"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	w.slices("IPv4")
	w.reachable(ips[:1], []string{w.lab.Hosts[2].IP})
	if out, err := w.lab.Run(t.Context(), "h1", w.lab.Bin+"/hello", "get", "http://["+ips[1]+"]/"); err == nil {
		t.Errorf("the address that was given back answers: %s", out)
	}
}

func TestIPv6Only(t *testing.T) {
	w := start(t, "six", lab.Options{IPv6Only: true})
	var peers []string
	for _, h := range w.lab.Peers() {
		peers = append(peers, h.IP)
		w.shows("h1", "rookery get node "+h.Name+" -o jsonpath={.status.addresses[*].address}", h.IP+" "+h.Name)
	}
	w.shows("h2", "rookery status", "fd77::1", "fd77::3", "fd42:", "Nothing is wrong.")
	w.shows("h2", "rookery token create", "rookery up --join fd77::2 --token rk1.")
	w.shows("h2", "rookery kubeconfig", "https://[fd77::2]:6443")
	w.shows("client", "rookery get endpointslices", "kubernetes-ipv6")
	p := w.pods()[0]
	if ips := p.Status.PodIPs; len(ips) != 1 || !strings.HasPrefix(ips[0].IP, "fd42:") || len(p.Status.HostIPs) != 1 || !slices.Contains(peers, p.Status.HostIPs[0].IP) {
		t.Errorf("addresses of %s: %+v", p.Metadata.Name, p.Status)
	}
	for _, h := range w.lab.Peers() { // of one of them the pod is
		w.shows(h.Name, "rookery -n hello logs "+p.Metadata.Name+" -c hello", "")
		w.shows(h.Name, "rookery get --raw /api/v1/namespaces/hello/pods/"+p.Metadata.Name+":8080/proxy/", p.Metadata.Name)
		w.shows(h.Name, "rookery get --raw /api/v1/namespaces/hello/services/hello:80/proxy/", "from pod")
	}
	w.shows("h1", "rookery -n hello exec "+p.Metadata.Name+" -c hello -- /hello get http://hello.hello.svc.cluster.local/", "from pod")
	w.reachable(w.clusterIPs(), peers)

	// A peer that goes takes its endpoints with it, and comes back.
	if err := w.lab.Cut(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	w.shows("h1", "rookery get node h3", "NotReady")
	w.shows("client", "rookery -n hello rollout status deployment/hello --timeout=3m", "successfully rolled out")
	w.reachable(w.clusterIPs(), peers[:2])
	if err := w.lab.Heal(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	w.shows("h3", "rookery status", "Nothing is wrong.")
	w.served(lab.Client, "http://[fd77::3]:30080/")
}
