package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/test/lab"
)

const clusterDNS = "10.43.0.10"

// lookUp asks a DNS server from a host, at port 53 unless server says another.
func lookUp(ctx context.Context, host, network, server, question string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "53")
	}
	conn, err := shared.DialFrom(ctx, host, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	name, qtype, _ := strings.Cut(question, " ")
	resp, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(name, dns.StringToType[qtype]), &dns.Conn{Conn: conn})
	return resp, err
}

// rendered are an answer's records without name, TTL and class, sorted.
func rendered(resp *dns.Msg) (out []string) {
	for _, rr := range resp.Answer {
		out = append(out, strings.Join(strings.Fields(rr.String())[3:], " "))
	}
	slices.Sort(out)
	return out
}

// resolve asks a DNS server from a host, again until it answers: the rcode, or the records.
func resolve(t *testing.T, host, network, server, question string) string {
	t.Helper()
	var resp *dns.Msg
	eventually(t, patience, func() (err error) {
		resp, err = lookUp(t.Context(), host, network, server, question)
		return err
	})
	out := rendered(resp)
	switch {
	case len(out) > 0:
		return strings.Join(out, ", ")
	case resp.Rcode == dns.RcodeSuccess:
		return "NODATA"
	}
	return dns.RcodeToString[resp.Rcode]
}

// resolves wants an answer, at the latest after a while.
func resolves(t *testing.T, host, network, server, question, want string) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := resolve(t, host, network, server, question); got != want {
			return fmt.Errorf("%s asked %s for %s by %s: %s, want %s", host, server, question, network, got, want)
		}
		return nil
	})
}

func api(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := shared.API()
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Names answer each peer, pods, and the LAN as far as it may know.
func TestNamesAnswerWhereverTheyAreAsked(t *testing.T) {
	all := scale(t, "h1", 3)
	client, ctx := api(t), t.Context()
	headless := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "each"}, Spec: corev1.ServiceSpec{
		ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "hello"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}},
	}}
	named := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "named", Labels: map[string]string{"app": "named"}}, Spec: corev1.PodSpec{
		Hostname: "alice", Subdomain: "by-name", TerminationGracePeriodSeconds: ptr.To(int64(0)),
		Containers: []corev1.Container{{Name: "c", Image: "localhost/busybox:1", Command: []string{"sleep", "3600"}}},
		DNSConfig:  &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("1")}}},
	}}
	byName := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "by-name"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "named"}}}
	for _, s := range []*corev1.Service{headless, byName} {
		if _, err := client.CoreV1().Services("hello").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.CoreV1().Services("hello").Delete(context.Background(), s.Name, metav1.DeleteOptions{}) })
	}
	if _, err := client.CoreV1().Pods("hello").Create(ctx, named, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.CoreV1().Pods("hello").Delete(context.Background(), "named", metav1.DeleteOptions{}) })
	host := strings.Split(strings.TrimSpace(sh(t, "h1", "cat /etc/resolv.conf")), "\n") // all machines of the lab have the same
	cluster := []string{"search hello.svc.cluster.local svc.cluster.local cluster.local", "nameserver " + clusterDNS, "options ndots:5"}
	for policy, want := range map[corev1.DNSPolicy][]string{
		corev1.DNSDefault:                 host,
		corev1.DNSNone:                    {"search home.arpa", "nameserver 192.0.2.53"},
		corev1.DNSClusterFirst:            host, // in the host's network as Default
		corev1.DNSClusterFirstWithHostNet: cluster,
	} {
		p := named.DeepCopy()
		p.Name, p.Labels = "dns-"+strings.ToLower(string(policy)), nil
		p.Spec.Hostname, p.Spec.Subdomain, p.Spec.DNSConfig, p.Spec.DNSPolicy = "", "", nil, policy
		p.Spec.HostNetwork = strings.HasPrefix(string(policy), "Cluster")
		if policy == corev1.DNSNone {
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Searches: []string{"home.arpa"}}
		}
		if _, err := client.CoreV1().Pods("hello").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.CoreV1().Pods("hello").Delete(context.Background(), p.Name, metav1.DeleteOptions{}) })
		defer func() {
			t.Helper()
			eventually(t, 2*time.Minute, func() error {
				out, err := shared.Run(t.Context(), "h1", "rookery", "-n", "hello", "exec", p.Name, "--", "cat", "/etc/resolv.conf")
				for _, line := range want {
					if err == nil && !strings.Contains("\n"+out, "\n"+line+"\n") {
						err = fmt.Errorf("dnsPolicy %s, host network %v: %q has no line %q", policy, p.Spec.HostNetwork, out, line)
					}
				}
				if policy != corev1.DNSClusterFirstWithHostNet && strings.Contains(out, "ndots:5") {
					err = fmt.Errorf("dnsPolicy %s, host network %v: %q", policy, p.Spec.HostNetwork, out)
				}
				return err
			})
		}()
	}
	var namedIP string
	eventually(t, 2*time.Minute, func() error {
		p, err := client.CoreV1().Pods("hello").Get(ctx, "named", metav1.GetOptions{})
		if err == nil && (p.Status.PodIP == "" || p.Status.Phase != corev1.PodRunning) {
			err = fmt.Errorf("the pod is %s", p.Status.Phase)
		}
		if err == nil {
			namedIP = p.Status.PodIP
		}
		return err
	})
	svc, err := client.CoreV1().Services("hello").Get(ctx, "hello", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var ips, peers []string
	for _, p := range all {
		ips = append(ips, "A "+p.Status.PodIP)
	}
	for _, h := range shared.Peers() {
		peers = append(peers, "A "+h.IP)
	}
	slices.Sort(ips)
	octets := strings.Split(svc.Spec.ClusterIP, ".")
	slices.Reverse(octets)
	for _, h := range shared.Peers() {
		for question, want := range map[string]string{
			"hello.hello.svc.cluster.local. A":               "A " + svc.Spec.ClusterIP,
			"hello.hello.svc.cluster.local. AAAA":            "NODATA",
			"nobody.hello.svc.cluster.local. A":              "NXDOMAIN",
			"_http._tcp.hello.hello.svc.cluster.local. SRV":  "SRV 0 100 80 hello.hello.svc.cluster.local.",
			strings.Join(octets, ".") + ".in-addr.arpa. PTR": "PTR hello.hello.svc.cluster.local.",
			"each.hello.svc.cluster.local. A":                strings.Join(ips, ", "),
			"alice.by-name.hello.svc.cluster.local. A":       "A " + namedIP,
			"h2.peer.cluster.local. A":                       "A 10.77.0.2",
			"dns-version.cluster.local. TXT":                 `TXT "1.1.0"`,
			"hello.hello.home.arpa. A":                       strings.Join(peers, ", "),
			"example.com. A":                                 "SERVFAIL", // nobody upstream
		} {
			resolves(t, h.Name, "udp", clusterDNS, question, want)
		}
		resolves(t, h.Name, "tcp", clusterDNS, "each.hello.svc.cluster.local. A", strings.Join(ips, ", "))
		for question, want := range map[string]string{
			"hello.hello.home.arpa. A":              strings.Join(peers, ", "),
			"_http._tcp.hello.hello.home.arpa. SRV": "SRV 0 100 30080 hello.hello.home.arpa.",
			"each.hello.home.arpa. A":               "NXDOMAIN",
			"hello.hello.svc.cluster.local. A":      "REFUSED",
			"h2.peer.cluster.local. A":              "REFUSED",
			"example.com. A":                        "REFUSED",
		} {
			resolves(t, lab.Client, "udp", h.IP, question, want)
		}
		resolves(t, lab.Client, "tcp", h.IP, "hello.hello.home.arpa. A", strings.Join(peers, ", "))
	}
	// From a pod by the resolver of its libc, with its own dnsConfig.
	if out := must(t, "h1", "rookery", "-n", "hello", "exec", "named", "--", "cat", "/etc/resolv.conf"); !strings.Contains(out, "options ndots:1\n") || !strings.Contains(out, "nameserver "+clusterDNS) {
		t.Errorf("resolv.conf of a pod with dnsConfig:\n%s", out)
	}
	if out := must(t, "h1", "rookery", "-n", "hello", "exec", "named", "--", "nslookup", "hello.hello.svc.cluster.local"); !strings.Contains(out, svc.Spec.ClusterIP) {
		t.Errorf("nslookup in a pod:\n%s", out)
	}
}

// An Ingress answers on every peer, with the certificate of its Secret, and requests find
// another pod when one dies.
func TestIngressServesOnEveryPeer(t *testing.T) {
	all := scale(t, "h1", 3)
	client, ctx := api(t), t.Context()
	const host = "hello.home.arpa"
	secret, pool := certificateFor(t, host)
	if _, err := client.CoreV1().Secrets("hello").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.CoreV1().Secrets("hello").Delete(context.Background(), secret.Name, metav1.DeleteOptions{})
	})
	backend := networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "hello", Port: networkingv1.ServiceBackendPort{Name: "http"}}}
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "hello"}, Spec: networkingv1.IngressSpec{
		TLS: []networkingv1.IngressTLS{{Hosts: []string{host}, SecretName: secret.Name}},
		Rules: []networkingv1.IngressRule{{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: ptr.To(networkingv1.PathTypePrefix), Backend: backend}},
		}}}},
	}}
	if conn, err := shared.DialFrom(ctx, lab.Client, "tcp", "10.77.0.1:443"); err == nil {
		conn.Close()
		t.Error("port 443 is open, and there is no Ingress")
	}
	made, err := client.NetworkingV1().Ingresses("hello").Create(ctx, ing, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Spec.IngressClassName == nil || *made.Spec.IngressClassName != "rookery" {
		t.Errorf("the default class is %v", made.Spec.IngressClassName)
	}
	t.Cleanup(func() {
		client.NetworkingV1().Ingresses("hello").Delete(context.Background(), "hello", metav1.DeleteOptions{})
	})
	eventually(t, patience, func() error {
		ing, err := client.NetworkingV1().Ingresses("hello").Get(ctx, "hello", metav1.GetOptions{})
		if err == nil && len(ing.Status.LoadBalancer.Ingress) != 3 {
			err = fmt.Errorf("addresses %v", ing.Status.LoadBalancer.Ingress)
		}
		return err
	})
	for _, h := range shared.Peers() {
		resolves(t, lab.Client, "udp", h.IP, host+". A", "A 10.77.0.1, A 10.77.0.2, A 10.77.0.3")
		through := &http.Client{
			Transport: &http.Transport{
				ForceAttemptHTTP2: true, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					_, port, _ := net.SplitHostPort(addr)
					return shared.DialFrom(ctx, lab.Client, network, net.JoinHostPort(h.IP, port))
				},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		resp, text := fetch(t, through, "https://"+host+"/")
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 || !strings.HasPrefix(text, "Hello from pod ") {
			t.Errorf("through %s: %s %s %q", h.Name, resp.Status, resp.Proto, text)
		}
		if resp, _ := fetch(t, through, "http://"+host+"/x"); resp.StatusCode != 308 || resp.Header.Get("Location") != "https://"+host+"/x" {
			t.Errorf("through %s without TLS: %s to %s", h.Name, resp.Status, resp.Header.Get("Location"))
		}
		if resp, _ := fetch(t, through, "http://else.home.arpa/"); resp.StatusCode != 404 {
			t.Errorf("through %s, a host without rules: %s", h.Name, resp.Status)
		}
		webSocket(t, h.IP, host, pool)
	}
	dying(t, client, all, host, pool)
}

func fetch(t *testing.T, client *http.Client, url string) (*http.Response, string) {
	t.Helper()
	var resp *http.Response
	var body []byte
	eventually(t, patience, func() (err error) {
		if resp, err = client.Get(url); err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return resp, string(body)
}

// webSocket upgrades a connection over TLS and has what it sends come back.
func webSocket(t *testing.T, peer, host string, pool *x509.CertPool) {
	t.Helper()
	raw, err := shared.DialFrom(t.Context(), lab.Client, "tcp", peer+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{ServerName: host, RootCAs: pool, NextProtos: []string{"http/1.1"}})
	fmt.Fprintf(conn, "GET /echo HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", host)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("through %s: %v %v", peer, resp, err)
	}
	for i := range 3 {
		fmt.Fprintf(conn, "ping %d\n", i)
		if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintf("ping %d\n", i) {
			t.Errorf("through %s: %q %v", peer, line, err)
		}
	}
}

// dying kills a pod while requests come one after the other: the one that is with it may
// fail, all others find another pod.
func dying(t *testing.T, client kubernetes.Interface, all []pod, host string, pool *x509.CertPool) {
	t.Helper()
	through := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return shared.DialFrom(ctx, lab.Client, network, "10.77.0.1:443")
	}}}
	victim := all[0]
	failed, after, gone := 0, 0, false
	for deadline := time.Now().Add(2 * time.Minute); after < 100 && time.Now().Before(deadline); {
		resp, err := through.Get("https://" + host + "/")
		ok := err == nil && resp.StatusCode == 200
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if !ok {
			failed++
			t.Logf("a request failed: %v %v", resp, err)
		}
		if !gone {
			gone = true
			go client.CoreV1().Pods("hello").Delete(context.Background(), victim.Metadata.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
		}
		if _, err := client.CoreV1().Pods("hello").Get(t.Context(), victim.Metadata.Name, metav1.GetOptions{}); err != nil {
			after++
		}
	}
	if after < 100 {
		t.Errorf("the pod is still there")
	}
	if failed > 1 {
		t.Errorf("%d requests failed while a pod died", failed)
	}
	scale(t, "h1", 3)
}

// certificateFor makes a certificate for a host, and a pool that trusts it.
func certificateFor(t *testing.T, host string) (*corev1.Secret, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(cert)
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "hello-tls"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		"tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}),
	}}, pool
}
