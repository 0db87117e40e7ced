package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// settings are of Ingresses and names, each another than the default. HOST is the peer's address,
// CLIENT that of the machine beside the peers, DIR the host's directory.
const settings = `
ingress-http: 8081
ingress-https: 8443
ingress-timeout: 2s
ingress-max-body: 1Ki
ingress-trusted-proxies: [CLIENT/32]
ingress-access-log: DIR/ingress.log
upstream-dns: ["CLIENT:5301", "CLIENT:5302"]
dns-forward: {corp.test: "CLIENT:5303"}
lan-dns: "HOST:5353"
lan-clients: [CLIENT/32]
lan-forward: true
lan-cluster-names: true
lan-rate: 20
`

const lanRate = 20

// A peer does what its configuration says of Ingresses and names.
func TestSettingsOfIngressesAndNames(t *testing.T) {
	allReady(t, patience)
	scale(t, "h1", 3)
	name := "h2" // not the one whose API the tests use, nor one that would be missed
	if leader(t) == name {
		name = "h3"
	}
	peer, err := shared.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	client, err := shared.Host(lab.Client)
	if err != nil {
		t.Fatal(err)
	}
	first, second, corp := serveNames(t, ":5301", "192.0.2."), serveNames(t, ":5302", "198.51.100."), serveNames(t, ":5303", "203.0.113.")
	path := filepath.Join(shared.HostDir(name), "rookery.yaml")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { restart(t, name, string(before)) })
	restart(t, name, string(before)+strings.NewReplacer("HOST", peer.IP, "CLIENT", client.IP, "DIR", shared.HostDir(name)).Replace(settings))
	quiet(t, name)
	t.Run("ingress", func(t *testing.T) { ingressSettings(t, peer) })
	t.Run("names", func(t *testing.T) { nameSettings(t, peer, first, second, corp) })
}

// restart kills a peer's daemon and starts it with another configuration.
func restart(t *testing.T, host, config string) {
	t.Helper()
	ctx := context.Background() // also in a cleanup
	if err := os.WriteFile(filepath.Join(shared.HostDir(host), "rookery.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(shared.Kill(ctx, host), shared.Start(ctx, host, flags...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func() error {
		_, err := shared.Run(ctx, host, "rookery", "get", "--raw", "/readyz")
		return err
	})
	eventually(t, 2*time.Minute, func() error {
		out, err := shared.Run(ctx, host, "rookery", "status")
		if err == nil && !strings.Contains(out, "Nothing is wrong.") {
			err = errors.New(out)
		}
		return err
	})
}

// quiet starts a pod on a peer that takes connections and says nothing, behind a Service
// of the same name, and a Service that is a name elsewhere.
func quiet(t *testing.T, peer string) {
	t.Helper()
	client, ctx := api(t), t.Context()
	t.Cleanup(func() {
		if out, err := shared.Run(context.Background(), "h1", strings.Fields("rookery -n hello delete --ignore-not-found pod/quiet service/quiet service/elsewhere")...); err != nil {
			t.Error(err, out)
		}
	})
	labels := map[string]string{"app": "quiet"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "quiet", Labels: labels}, Spec: corev1.PodSpec{
		NodeName: peer, TerminationGracePeriodSeconds: ptr.To(int64(0)),
		Containers: []corev1.Container{{Name: "c", Image: "localhost/busybox:1", Command: []string{"nc", "-ll", "-p", "8080", "-e", "sleep", "3600"}}},
	}}
	if _, err := client.CoreV1().Pods("hello").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "quiet"}, Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.corp.test"}},
	} {
		if _, err := client.CoreV1().Services("hello").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "h1", "rookery", "-n", "hello", "wait", "pod/quiet", "--for=condition=Ready", "--timeout=2m")
}

func ingressSettings(t *testing.T, peer lab.Host) {
	client, ctx := api(t), t.Context()
	const host = "settings.home.arpa"
	path := func(p, service string) networkingv1.HTTPIngressPath {
		return networkingv1.HTTPIngressPath{Path: p, PathType: ptr.To(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: service, Port: networkingv1.ServiceBackendPort{Number: 80}},
		}}
	}
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Spec: networkingv1.IngressSpec{
		TLS: []networkingv1.IngressTLS{{Hosts: []string{host}}}, // no Secret
		Rules: []networkingv1.IngressRule{{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{path("/", "hello"), path("/quiet", "quiet")},
		}}}},
	}}
	if _, err := client.NetworkingV1().Ingresses("hello").Create(ctx, ing, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.NetworkingV1().Ingresses("hello").Delete(context.Background(), ing.Name, metav1.DeleteOptions{})
	})
	through := &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: clusterCA(t)},
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(addr)
				return shared.DialFrom(ctx, lab.Client, network, net.JoinHostPort(peer.IP, port))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ask := func(method, url string, body int) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(strings.Repeat("x", body)))
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("X-Forwarded-For", "198.18.0.7")
		resp, err := through.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp, string(text), err
	}
	for _, c := range []struct {
		method, url string
		body        int // bytes
		code        int
		text        string
	}{
		{"GET", "http://" + host + ":8081/x?y", 0, 308, "https://" + host + ":8443/x?y"},
		{"GET", "https://" + host + ":8443/", 0, 200, "from pod"},
		{"GET", "https://" + host + ":8443/quiet", 0, 504, ""},
		{"POST", "https://" + host + ":8443/", 1024, 405, ""}, // says the pod
		{"POST", "https://" + host + ":8443/", 1025, 413, "1024 bytes at most"},
	} {
		eventually(t, patience, func() error {
			resp, text, err := ask(c.method, c.url, c.body)
			if err == nil && (resp.StatusCode != c.code || !strings.Contains(text+resp.Header.Get("Location"), c.text)) {
				err = fmt.Errorf("%s %s with %d bytes: %s %q to %q, want %d %q", c.method, c.url, c.body, resp.Status, text, resp.Header.Get("Location"), c.code, c.text)
			}
			return err
		})
		eventually(t, patience, func() error {
			return metric(t, peer.Name, fmt.Sprintf(`rookery_ingress_requests_total{code="%d",ingress="hello/settings"}`, c.code))
		})
		eventually(t, patience, func() error { return logged(peer.Name, c.method, c.code) })
	}
}

// clusterCA is what a user of the cluster trusts.
func clusterCA(t *testing.T) *x509.CertPool {
	t.Helper()
	config, err := clientcmd.LoadFromFile(filepath.Join(shared.HostDir(lab.Client), "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, c := range config.Clusters {
		pool.AppendCertsFromPEM(c.CertificateAuthorityData)
	}
	return pool
}

// metric tells what is wrong unless a counter of a peer is above zero.
func metric(t *testing.T, host, series string) error {
	t.Helper()
	out, err := shared.Run(t.Context(), host, "rookery", "get", "--raw", "/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			if n, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil || n < 1 {
				return fmt.Errorf("%s: %s", host, line)
			}
			return nil
		}
	}
	return fmt.Errorf("%s has no metric %s", host, series)
}

// logged tells what is wrong unless the access log has a request of this test that was so answered.
func logged(host, method string, code int) error {
	text, err := os.ReadFile(filepath.Join(shared.HostDir(host), "ingress.log"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var seen struct {
			Client, Method, Ingress string
			Status                  int
		}
		if err := json.Unmarshal([]byte(line), &seen); err != nil {
			return fmt.Errorf("%w in %s", err, line)
		}
		if seen.Method == method && seen.Status == code && seen.Ingress == "hello/settings" && seen.Client == "198.18.0.7" {
			return nil
		}
	}
	return fmt.Errorf("no %s answered with %d in:\n%s", method, code, text)
}

func nameSettings(t *testing.T, peer lab.Host, first, second, corp *nameserver) {
	lan := peer.IP + ":5353"
	fromLAN := func(question string) string { return resolve(t, lab.Client, "udp", lan, question) }
	fromPod := func(name string) string {
		out, err := shared.Run(t.Context(), peer.Name, "rookery", "-n", "hello", "exec", "quiet", "--", "nslookup", "-type=a", name)
		if err != nil {
			return err.Error()
		}
		return out
	}
	// answers asks for names that nobody has asked for before until one of server's is the answer.
	number := 0
	answers := func(ask func(string) string, server *nameserver) {
		t.Helper()
		eventually(t, 2*time.Minute, func() error {
			number++
			name := fmt.Sprintf("name-%d.example.", number)
			if got := ask(name); !server.has(got) {
				return fmt.Errorf("%s: %q is not of %s0/24", name, got, server.network)
			}
			return nil
		})
	}
	withA := func(name string) string { return fromLAN(name + " A") }

	answers(withA, first)
	answers(fromPod, first)
	// Another question would have another answer: this one was kept, for the pod and for the LAN.
	kept := withA("kept.example.")
	for range 3 {
		resolves(t, lab.Client, "udp", lan, "Kept.Example. A", kept)
	}
	eventually(t, patience, func() error {
		if out := fromPod("kept.example."); !strings.Contains(out, strings.TrimPrefix(kept, "A ")+"\n") {
			return fmt.Errorf("the LAN was told %s, a pod %s", kept, out)
		}
		return nil
	})
	eventually(t, patience, func() error {
		return metric(t, peer.Name, `rookery_dns_forwarded_total{result="cached"}`)
	})

	// A domain has a server of its own, also where an ExternalName leads there.
	for _, name := range []string{"www.corp.test.", "elsewhere.hello.svc.cluster.local."} {
		eventually(t, patience, func() error {
			if pod, other := fromPod(name), withA(name); !corp.has(pod) || !corp.has(other) {
				return fmt.Errorf("a pod was told %s of %s, the LAN %s", pod, name, other)
			}
			return nil
		})
	}
	if got := withA("elsewhere.hello.svc.cluster.local."); !strings.HasPrefix(got, "A 203.0.113.") || !strings.HasSuffix(got, ", CNAME www.corp.test.") {
		t.Errorf("an ExternalName: %s", got)
	}

	// One machine falls silent, the other serves; then its server ends too, and what it said last lives on.
	first.silent.Store(true)
	answers(fromPod, second)
	answers(withA, second)
	eventually(t, patience, func() error {
		if got := withA("brief.example."); !second.has(got) {
			return errors.New(got)
		}
		return nil
	})
	second.stop()
	eventually(t, 2*time.Minute, func() error {
		resp, err := lookUp(t.Context(), lab.Client, "udp", lan, "brief.example. A")
		if err == nil && (len(resp.Answer) != 1 || !second.has(resp.Answer[0].String()) || resp.Answer[0].Header().Ttl != 30) {
			err = fmt.Errorf("not an old answer: %s", resp)
		}
		return err
	})
	eventually(t, patience, func() error {
		if out := fromPod("brief.example."); !second.has(out) {
			return errors.New(out)
		}
		return nil
	})
	eventually(t, patience, func() error {
		return metric(t, peer.Name, `rookery_dns_forwarded_total{result="stale"}`)
	})
	resolves(t, lab.Client, "udp", lan, "never.example. A", "SERVFAIL")
	first.silent.Store(false)
	answers(fromPod, first)

	// Who may ask what.
	resolves(t, lab.Client, "udp", lan, peer.Name+".peer.cluster.local. A", "A "+peer.IP)
	for _, question := range []string{"kept.example. A", "hello.hello.svc.cluster.local. A", "hello.hello.home.arpa. A"} {
		resolves(t, "h1", "udp", lan, question, "REFUSED") // not of lan-clients
	}
	burst(t, lan)
	eventually(t, patience, func() error {
		return errors.Join(metric(t, peer.Name, `rookery_dns_limited_total{action="dropped"}`), metric(t, peer.Name, `rookery_dns_limited_total{action="truncated"}`))
	})
	if got := resolve(t, lab.Client, "tcp", lan, "hello.hello.svc.cluster.local. A"); !strings.HasPrefix(got, "A 10.43.") {
		t.Errorf("by tcp: %s", got)
	}
}

// burst asks more at once than the LAN may: some of it is told to ask by tcp, and no more is
// answered than lan-rate allows.
func burst(t *testing.T, server string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		raw, err := shared.DialFrom(t.Context(), lab.Client, "udp", server)
		if err != nil {
			return err
		}
		defer raw.Close()
		conn, began := &dns.Conn{Conn: raw}, time.Now()
		for range 10 * lanRate {
			if err := conn.WriteMsg(new(dns.Msg).SetQuestion("hello.hello.svc.cluster.local.", dns.TypeA)); err != nil {
				return err
			}
		}
		whole, cut, last := 0, 0, began
		for {
			if err := raw.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			resp, err := conn.ReadMsg()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if last = time.Now(); resp.Truncated && len(resp.Answer) == 0 {
				cut++
			} else {
				whole++
			}
		}
		// A second's worth may come at once.
		if most := lanRate * (1 + last.Sub(began).Seconds()); float64(whole) > most+1 {
			t.Errorf("%d of %d questions answered within %s, at most %.0f may be", whole, 10*lanRate, last.Sub(began), most)
		}
		if cut == 0 {
			return fmt.Errorf("of %d questions %d were answered, none was cut", 10*lanRate, whole)
		}
		return nil
	})
}

// nameserver is a DNS server on the machine beside the peers. To each question for an IPv4 address it
// says another one of its network, for 5 minutes, that of brief.example. for a second.
type nameserver struct {
	network string // its first three octets, such as "192.0.2."
	silent  atomic.Bool
	stop    func()
}

// has tells whether a text has one of the server's addresses.
func (n *nameserver) has(text string) bool {
	return slices.ContainsFunc(regexp.MustCompile(`[0-9.]+`).FindAllString(text, -1), func(s string) bool { return strings.HasPrefix(s, n.network) })
}

// serveNames runs a nameserver until the test ends or it is stopped.
func serveNames(t *testing.T, port, network string) *nameserver {
	t.Helper()
	conn, err := shared.ListenPacketOn(t.Context(), lab.Client, "udp", port)
	if err != nil {
		t.Fatal(err)
	}
	n := &nameserver{network: network}
	var said atomic.Int64
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if n.silent.Load() {
			return
		}
		resp := new(dns.Msg).SetReply(req)
		if q := req.Question[0]; q.Qtype == dns.TypeA {
			ttl := uint32(300)
			if q.Name == "brief.example." {
				ttl = 1
			}
			resp.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: ttl}, A: net.ParseIP(network + strconv.Itoa(int(said.Add(1)%256))),
			}}
		}
		if err := w.WriteMsg(resp); err != nil {
			t.Error(err)
		}
	})}
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	n.stop = sync.OnceFunc(func() {
		if err := errors.Join(server.Shutdown(), <-ended); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}
