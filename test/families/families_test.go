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

	"github.com/miekg/dns"

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

func (w world) sh(host, line string) string {
	w.t.Helper()
	return labtest.Run(w.t, w.lab, host, line)
}

func (w world) shows(host, line string, want ...string) {
	w.t.Helper()
	labtest.Shows(w.t, w.lab, 3*time.Minute, host, line, want...)
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
	labtest.Eventually(w.t, 2*time.Minute, func() error {
		got, err := w.load(asker, url, 20, 2*time.Second)
		if err == nil && (got.Failed > 0 || len(got.Pods) != 3) {
			err = fmt.Errorf("%s from %s: %+v", url, asker, got)
		}
		return err
	})
}

// resolves asks a DNS server from a host until it answers with this record alone.
func (w world) resolves(host, network, server, question, want string) {
	w.t.Helper()
	name, qtype, _ := strings.Cut(question, " ")
	labtest.Eventually(w.t, 2*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		defer cancel()
		conn, err := w.lab.DialFrom(ctx, host, network, net.JoinHostPort(server, "53"))
		if err != nil {
			return err
		}
		defer conn.Close()
		resp, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(name, dns.StringToType[qtype]), &dns.Conn{Conn: conn})
		if err != nil {
			return err
		}
		got := dns.RcodeToString[resp.Rcode]
		for _, rr := range resp.Answer {
			got += ", " + strings.Join(strings.Fields(rr.String())[3:], " ")
		}
		if got != "NOERROR, "+want {
			return fmt.Errorf("%s by %s at %s: %s, want %s", question, network, server, got, want)
		}
		return nil
	})
}

// reverse is the name under which an address' own name is asked for.
func reverse(t *testing.T, addr string) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// use changes the backend and waits until every peer has followed.
func (w world) use(backend string) {
	w.t.Helper()
	w.sh("h1", "rookery net use "+backend)
	for _, h := range w.lab.Peers() {
		labtest.Eventually(w.t, 2*time.Minute, func() error {
			var s struct{ Network, Change string }
			err := w.lab.JSON(w.t.Context(), &s, h.Name, "rookery", "status", "--json")
			if err == nil && (s.Network != backend || s.Change != "") {
				err = fmt.Errorf("%s: %+v, want %s", h.Name, s, backend)
			}
			return err
		})
	}
}

// report mirrors what `hello load` prints.
type report struct {
	Sent, Failed   int
	Pods           map[string]int
	LastFailure    time.Time
	Errors         map[string]int
	FailedBySecond map[int64]int
}

// load asks a URL at a fixed rate; asker is that of [world.served].
func (w world) load(asker, url string, rate int, length time.Duration) (r report, err error) {
	host, command := asker, w.lab.Bin+"/hello"
	if pod, at, ok := strings.Cut(asker, " in "); ok {
		host, command = at, "rookery -n hello exec "+pod+" -c hello -- /hello"
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), length+time.Minute)
	defer cancel()
	out, err := w.lab.Run(ctx, host, strings.Fields(fmt.Sprintf("%s load -rate %d -for %s %s", command, rate, length, url))...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err != nil {
		err = fmt.Errorf("load of %s from %s: %w: %s", url, asker, err, out)
	}
	return r, err
}

// during asks each URL from each asker, 200 times a second in all, while something happens,
// and reports by who asked what.
func (w world) during(length time.Duration, askers, urls []string, happens func()) map[string]report {
	w.t.Helper()
	type result struct {
		name string
		report
		error
	}
	results := make(chan result)
	for _, asker := range askers {
		for _, url := range urls {
			go func() {
				r, err := w.load(asker, url, 200/len(askers)/len(urls), length)
				results <- result{asker + " to " + url, r, err}
			}()
		}
	}
	time.Sleep(time.Second) // the load runs before it happens
	happens()
	reports := map[string]report{}
	for range len(askers) * len(urls) {
		r := <-results
		if r.error != nil {
			w.t.Error(r.error)
			continue
		}
		w.t.Logf("%s: %d requests, %d failed, %d pods answered", r.name, r.Sent, r.Failed, len(r.Pods))
		reports[r.name] = r.report
	}
	return reports
}

// none wants no request to have failed.
func (w world) none(what string, reports map[string]report) {
	w.t.Helper()
	for name, r := range reports {
		labtest.NoneLost(w.t, what+": "+name, r.Sent, r.Failed, r.Errors)
	}
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

// A cluster whose first family is IPv6: its Services have that unless they say otherwise, and
// both families are served alike over each backend, while pods are replaced and peers are lost.
func TestIPv6First(t *testing.T) {
	w := start(t, "first", lab.Options{Flags: []string{"--pod-cidr", "fd42::/56,10.42.0.0/16", "--service-cidr", "fd43::/112,10.43.0.0/16"}})
	for _, h := range w.lab.Peers() {
		w.shows("h2", "rookery get node "+h.Name+" -o jsonpath={.spec.podCIDRs[0]}|{.spec.podCIDRs[1]}", "fd42:", "|10.42.")
	}
	for _, p := range w.pods() {
		if ips := p.Status.PodIPs; len(ips) != 2 || !strings.HasPrefix(ips[0].IP, "fd42:") || !strings.HasPrefix(ips[1].IP, "10.42.") {
			t.Errorf("addresses of %s: %+v", p.Metadata.Name, p.Status)
		}
	}
	if ips := w.clusterIPs(); len(ips) != 1 || !strings.HasPrefix(ips[0], "fd43::") {
		t.Fatalf("the Service of one family has %v", ips)
	}
	w.slices("IPv6")
	w.sh("h2", `rookery -n hello patch service hello -p {"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
	ips := w.clusterIPs()
	if len(ips) != 2 || !strings.HasPrefix(ips[1], "10.43.") {
		t.Fatalf("the Service of both families has %v", ips)
	}
	w.slices("IPv4", "IPv6")
	w.sh("h1", `rookery -n hello run asker --image=localhost/hello:1 --overrides={"spec":{"nodeName":"h2","containers":[{"name":"hello","image":"localhost/hello:1","args":["serve"]}]}}`)
	w.sh("h1", "rookery -n hello wait pod/asker --for=condition=Ready --timeout=3m")
	const asker = "asker in h1"
	urls := []string{"http://" + net.JoinHostPort(ips[0], "80") + "/", "http://" + net.JoinHostPort(ips[1], "80") + "/"}
	for _, backend := range []string{"direct", "vxlan", "wireguard"} {
		w.use(backend)
		for _, url := range urls {
			w.served(asker, url)
		}
		w.served(lab.Client, "http://"+net.JoinHostPort(w.lab.Hosts[0].IPv6, "30080")+"/")
	}
	w.served(asker, "http://hello.hello.svc.cluster.local/")

	// Names, by both of the addresses under which they are asked for.
	for _, server := range []string{"fd43::a", "10.43.0.10"} {
		for question, want := range map[string]string{
			"hello.hello.svc.cluster.local. AAAA":           "AAAA " + ips[0],
			"hello.hello.svc.cluster.local. A":              "A " + ips[1],
			"_http._tcp.hello.hello.svc.cluster.local. SRV": "SRV 0 100 80 hello.hello.svc.cluster.local.",
			reverse(t, ips[0]) + " PTR":                     "PTR hello.hello.svc.cluster.local.",
			reverse(t, ips[1]) + " PTR":                     "PTR hello.hello.svc.cluster.local.",
			"h2.peer.cluster.local. A":                      "A " + w.lab.Hosts[1].IP,
		} {
			for _, network := range []string{"udp", "tcp"} {
				w.resolves("h3", network, server, question, want)
			}
		}
	}
	w.sh("h1", "rookery -n hello create ingress all --default-backend=hello:http")
	for _, h := range w.lab.Peers() {
		w.served(lab.Client, "http://"+net.JoinHostPort(h.IPv6, "80")+"/")
		w.served(lab.Client, "http://"+h.IP+"/")
	}

	w.none("a rolling update", w.during(30*time.Second, []string{asker, "h1"}, urls, func() {
		w.sh("h1", "rookery -n hello set image deployment/hello hello=localhost/hello:2")
		w.sh("h1", "rookery -n hello rollout status deployment/hello --timeout=3m")
	}))
	w.none("a daemon that is killed", w.during(20*time.Second, []string{asker, "h1"}, urls, func() {
		if err := w.lab.Kill(t.Context(), "h3"); err != nil {
			t.Fatal(err)
		}
		w.shows("h1", "rookery get node h3", "NotReady")
		if err := w.lab.Start(t.Context(), "h3"); err != nil {
			t.Fatal(err)
		}
	}))
	w.shows("h3", "rookery status", "Nothing is wrong.")

	w.sh("h1", "rookery -n hello scale deployment/hello --replicas 6") // some of them on h3
	w.sh("h1", "rookery -n hello rollout status deployment/hello --timeout=3m")
	var cut time.Time
	for name, r := range w.during(20*time.Second, []string{asker, "h1"}, urls, func() {
		cut = time.Now()
		if err := w.lab.Cut(t.Context(), "h3"); err != nil {
			t.Fatal(err)
		}
	}) {
		if r.Failed == 0 {
			continue
		}
		// 3 s on a machine that does nothing else, which make bench measures.
		t.Logf("after a cut: %s: the last request failed %.1f s later", name, r.LastFailure.Sub(cut).Seconds())
		labtest.FailedSoon(t, "after a cut: "+name, cut, r.Sent, r.FailedBySecond, r.Errors)
	}
	if err := w.lab.Heal(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	w.shows("h3", "rookery status", "Nothing is wrong.")
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
	labtest.Eventually(t, 3*time.Minute, func() error {
		var list struct{ Items []pod }
		err := w.lab.JSON(t.Context(), &list, "h1", "rookery", "-n", "hello", "get", "pods", "-l", "app=hello", "-o", "json")
		here := 0
		for _, p := range list.Items {
			switch {
			case p.Metadata.DeletionTimestamp != nil:
			case p.Spec.NodeName == "h3":
				return fmt.Errorf("pod %s is still wanted on h3", p.Metadata.Name)
			default:
				here++
			}
		}
		if err == nil && here != 3 {
			err = fmt.Errorf("%d of 3 pods are on the peers that are left", here)
		}
		return err
	})
	w.shows("client", "rookery -n hello rollout status deployment/hello --timeout=3m", "successfully rolled out")
	w.reachable(w.clusterIPs(), peers[:2])
	if err := w.lab.Heal(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	w.shows("h3", "rookery status", "Nothing is wrong.")
	w.served(lab.Client, "http://[fd77::3]:30080/")
}
