package network_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	cachetesting "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/announce"
	"github.com/rundigitalplatform/rookery/network/overlay/userwg"
	"github.com/rundigitalplatform/rookery/network/policy"
	"github.com/rundigitalplatform/rookery/network/services"
)

// The test binary plays the other parts as well: what it is in a process of its
// own is in the environment.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv("NETT_ROLE") {
	case "":
		// With the race detector each of the many short processes would sleep a second at its end.
		os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
		os.Exit(m.Run())
	case "host":
		err = hostRole()
	case "pod":
		err = podRole()
	case "dial":
		err = dialRole()
	case "blast":
		err = blastRole()
	case "router":
		err = routerRole()
	case "wireguard":
		err = userwg.Run(context.Background(), os.Stdin, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type request struct {
	Verb     string
	Node     string
	Config   *network.Config
	UID      string
	UIDs     []string
	PID      int
	Ports    []corev1.ContainerPort
	Peers    []network.Peer
	Backend  string
	Look     bool // at the paths
	Address  netip.Addr
	Ranges   []netip.Prefix // of all pods
	Dead     []string
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice

	// All there are; none for a daemon without policies.
	Policies   []*networkingv1.NetworkPolicy
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
}

type answer struct{ Text, Error string }

// host is a daemon that does what it is told on its standard input.
type host struct {
	net       *network.Network
	services  *cachetesting.FakeControllerSource
	slices    *cachetesting.FakeControllerSource
	policies  map[string]*cachetesting.FakeControllerSource // policies, pods and namespaces; service and slice, as above
	have      map[string]bool
	announcer *announce.Announcer
	moved     chan struct{}
	known     cache.Indexer // of pods; nil: not started
	admission *policy.Controller
	changed   chan struct{}
	cancel    context.CancelFunc
	done      chan error

	mu   sync.Mutex
	dead map[string]bool
}

// Admit is of network.Admission: the controller is made after the network.
func (h *host) Admit(ctx context.Context) error { return h.admission.Admit(ctx) }

func hostRole() error {
	h := &host{have: map[string]bool{}, changed: make(chan struct{}, 1), moved: make(chan struct{}, 1), dead: map[string]bool{}, done: make(chan error, 4)}
	in, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil // the test is over
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // WireGuard may be waited for, killed and started anew
		var a answer
		a.Text, err = h.do(ctx, r)
		cancel()
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func (h *host) do(ctx context.Context, r request) (string, error) {
	switch r.Verb {
	case "start":
		return "", h.start(ctx, r)
	case "attach":
		addrs, err := h.net.Attach(ctx, r.UID, r.PID, r.Ports)
		if err != nil {
			return "", err
		}
		return strings.Trim(fmt.Sprint(addrs), "[]"), nil
	case "detach":
		return "", h.net.Detach(ctx, r.UID)
	case "reconcile":
		return "", h.net.Reconcile(ctx, r.UIDs)
	case "peers":
		return "", h.net.SetPeers(ctx, r.Peers)
	case "address":
		return "", h.net.SetAddress(ctx, r.Address)
	case "use":
		return "", h.net.Use(ctx, r.Backend)
	case "paths": // looks for as long as it takes
		all, err := json.Marshal(h.net.Paths(context.WithoutCancel(ctx), r.Look))
		return string(all), err
	case "silent":
		names, err := h.net.Silent()
		return strings.Join(names, " "), err
	case "put":
		for _, s := range r.Services {
			h.put(h.services, "service "+s.Namespace+"/"+s.Name, s)
		}
		for _, s := range r.Slices {
			h.put(h.slices, "slice "+s.Namespace+"/"+s.Name, s)
		}
		return "", nil
	case "policies":
		replace(h, "policies", r.Policies)
		replace(h, "pods", r.Pods)
		replace(h, "namespaces", r.Namespaces)
		return "", h.seen(ctx, r.Pods)
	case "services": // all that there are
		replace(h, "service", r.Services)
		replace(h, "slice", r.Slices)
		return "", nil
	case "dead":
		h.mu.Lock()
		clear(h.dead)
		for _, n := range r.Dead {
			h.dead[n] = true
		}
		h.mu.Unlock()
		h.changed <- struct{}{}
		h.moved <- struct{}{}
		return "", nil
	case "check":
		var out strings.Builder
		for _, f := range network.Check(ctx, r.Ranges, network.Ports(r.Backend, 51820)...) {
			if !f.OK && strings.HasPrefix(f.Name, "firewall") {
				fmt.Fprintf(&out, "%s: %s -> %s\n", f.Name, f.Detail, f.Cure)
			}
		}
		return out.String(), nil
	case "clean":
		h.cancel()
		if err := errors.Join(<-h.done, <-h.done, <-h.done, <-h.done); err != nil {
			return "", err
		}
		return "", h.net.Clean(ctx)
	}
	return "", fmt.Errorf("unknown verb %q", r.Verb)
}

func (h *host) put(to *cachetesting.FakeControllerSource, key string, o runtime.Object) {
	if h.have[key] {
		to.Modify(o)
	} else {
		to.Add(o)
	}
	h.have[key] = true
}

// splitOf reads weights of addresses from an annotation: "10.42.1.2=25 10.42.2.2=75".
func splitOf(svc *corev1.Service) *services.Split {
	text, ok := svc.Annotations["weights"]
	if !ok {
		return nil
	}
	s := &services.Split{Weights: map[string]int{}, Group: func(e discoveryv1.Endpoint) string { return e.Addresses[0] }}
	for _, f := range strings.Fields(text) {
		addr, weight, _ := strings.Cut(f, "=")
		if n, err := strconv.Atoi(weight); err == nil {
			s.Weights[addr] = n
		}
	}
	return s
}

// replace makes objects all that there are of a kind.
func replace[T interface {
	runtime.Object
	metav1.Object
}](h *host, kind string, objects []T) {
	source := h.policies[kind]
	gone := map[string]bool{}
	for key := range h.have {
		if strings.HasPrefix(key, kind+" ") {
			gone[key] = true
		}
	}
	for _, o := range objects {
		key := kind + " " + o.GetNamespace() + "/" + o.GetName()
		delete(gone, key)
		h.put(source, key, o)
	}
	for key := range gone {
		namespace, name, _ := strings.Cut(strings.TrimPrefix(key, kind+" "), "/")
		var o T
		o = reflect.New(reflect.TypeOf(o).Elem()).Interface().(T)
		o.SetNamespace(namespace)
		o.SetName(name)
		source.Delete(o)
		delete(h.have, key)
	}
}

// seen waits until the daemon knows of the pods, as an agent does that starts them.
func (h *host) seen(ctx context.Context, pods []*corev1.Pod) error {
	if h.known == nil {
		return nil
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, p := range pods {
		for {
			if _, ok, err := h.known.GetByKey(p.Namespace + "/" + p.Name); ok || err != nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (h *host) start(ctx context.Context, r request) error {
	cfg := *r.Config
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	cfg.Admission = h
	cfg.WireGuard = []string{"env", "NETT_ROLE=wireguard", os.Args[0]}
	if h.net, err = network.New(cfg); err != nil {
		return err
	}
	h.policies = map[string]*cachetesting.FakeControllerSource{}
	for _, kind := range []string{"policies", "pods", "namespaces"} {
		h.policies[kind] = cachetesting.NewFakeControllerSource()
	}
	if _, err := h.do(ctx, request{Verb: "policies", Policies: r.Policies, Pods: r.Pods, Namespaces: r.Namespaces}); err != nil {
		return err
	}
	h.services, h.slices = cachetesting.NewFakeControllerSource(), cachetesting.NewFakeControllerSource()
	h.policies["service"], h.policies["slice"] = h.services, h.slices
	if _, err := h.do(ctx, request{Verb: "put", Services: r.Services, Slices: r.Slices}); err != nil {
		return err
	}
	inf := informers.NewSharedInformerFactory(nil, 0)
	for from, kind := range map[*cachetesting.FakeControllerSource]runtime.Object{
		h.services: &corev1.Service{}, h.slices: &discoveryv1.EndpointSlice{},
		h.policies["policies"]: &networkingv1.NetworkPolicy{}, h.policies["pods"]: &corev1.Pod{}, h.policies["namespaces"]: &corev1.Namespace{},
	} {
		inf.InformerFor(kind, func(kubernetes.Interface, time.Duration) cache.SharedIndexInformer {
			return cache.NewSharedIndexInformer(from, kind, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
		})
	}
	svc, eps, pods := inf.Core().V1().Services(), inf.Discovery().V1().EndpointSlices(), inf.Core().V1().Pods()
	h.known = pods.Informer().GetIndexer()
	ctl := services.New(services.Config{
		Services: svc, Slices: eps, Rules: h.net, Section: network.ServicesSection, Changed: h.changed, Log: cfg.Log,
		Zone:     func() string { return "zone-" + r.Node },
		Split:    splitOf,
		Alive:    func(node string) bool { h.mu.Lock(); defer h.mu.Unlock(); return !h.dead[node] },
		Families: balanced(r.Node, cfg.Families),
	})
	h.admission = policy.New(policy.Config{
		Policies: inf.Networking().V1().NetworkPolicies(), Pods: pods, Namespaces: inf.Core().V1().Namespaces(),
		Network: h.net, Section: network.PoliciesSection, Families: isolated(r.Node, cfg.Families), Log: cfg.Log,
	})
	h.announcer = announce.New(announce.Config{
		Services: svc, Slices: eps, Self: r.Node, Address: func() netip.Addr { return cfg.Address }, Changed: h.moved, Log: cfg.Log,
		Families: []knftables.Family{knftables.IPv4Family, knftables.IPv6Family},
		Ours: func(a netip.Addr) bool {
			return netip.MustParsePrefix("192.168.77.240/28").Contains(a) || netip.MustParsePrefix("fd77::f0/124").Contains(a)
		},
		Peers: func() (out []announce.Peer) {
			h.mu.Lock()
			defer h.mu.Unlock()
			for i, name := range []string{"h1", "h2"} {
				if !h.dead[name] {
					out = append(out, announce.Peer{Name: name, Addresses: []netip.Addr{
						netip.MustParseAddr(fmt.Sprint("192.168.77.", i+1)), netip.MustParseAddr(fmt.Sprint("fd77::", i+1)),
					}})
				}
			}
			for i := range 8 { // of another site; it would be given every second address at least
				out = append(out, announce.Peer{Name: fmt.Sprint("far", i), Addresses: []netip.Addr{netip.MustParseAddr("192.168.78.1"), netip.MustParseAddr("fd78::1")}})
			}
			return out
		},
	})
	run, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	inf.Start(run.Done())
	failed := make(chan error, 1)
	go func() {
		err := h.net.Run(run)
		failed <- err
		h.done <- err
	}()
	go func() { h.done <- ctl.Run(run) }()
	go func() { h.done <- h.admission.Run(run) }()
	go func() { h.done <- h.announcer.Run(run) }()
	select {
	case <-h.net.Ready():
		return nil
	case err := <-failed:
		return fmt.Errorf("run: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// podRole answers on TCP and UDP port 8080, and that of SCTP if the kernel has it, with its
// name and the client's address; on TCP it then echoes, by UDP an answer may be wanted later.
func podRole() error {
	name := os.Getenv("NETT_NAME")
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", ":8080")
	if err != nil {
		return err
	}
	sink, err := net.Listen("tcp", ":8081")
	if err != nil {
		return err
	}
	signals, err := listenSCTP(8080)
	if err != nil && !errors.Is(err, errNoSCTP) {
		return err
	}
	fmt.Println("ready")
	if signals != nil {
		go greet(signals, name)
	}
	go func() { // for blastRole: swallows everything, then says so
		for {
			c, err := sink.Accept()
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, c); err == nil {
				fmt.Fprintln(c, "done")
			}
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		var later net.Addr
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) == "later\n" { // to be answered before the next one who asks
				later = from
				continue
			}
			if later != nil && later.String() != from.String() {
				if _, err := u.WriteTo([]byte("late\n"), later); err != nil {
					return
				}
				later = nil
			}
			if _, err := u.WriteTo([]byte(name+" "+hostOf(from)+"\n"), from); err != nil {
				return
			}
		}
	}()
	return greet(l, name)
}

func greet(l net.Listener, name string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "%s %s\n", name, hostOf(c.RemoteAddr()))
			in := bufio.NewReader(c)
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == "stream\n" { // from now on only this end talks
					for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
						if _, err := fmt.Fprintln(c, "tick"); err != nil {
							return
						}
					}
				}
				if _, err := fmt.Fprint(c, line); err != nil {
					return
				}
			}
		}()
	}
}

func hostOf(a net.Addr) string { h, _, _ := net.SplitHostPort(a.String()); return h }

// dialRole prints who answered, once a line. With NETT_HOLD it keeps one connection
// and echoes through it for each line of its input.
func dialRole() error {
	n, err := strconv.Atoi(os.Getenv("NETT_COUNT"))
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: 3 * time.Second} // longer than the first retransmission of a SYN
	if wait := os.Getenv("NETT_WAIT"); wait != "" {
		if d.Timeout, err = time.ParseDuration(wait); err != nil {
			return err
		}
	}
	if from := os.Getenv("NETT_FROM"); from != "" {
		at, err := netip.ParseAddrPort(from)
		if err != nil { // an address alone
			addr, err := netip.ParseAddr(from)
			if err != nil {
				return err
			}
			at = netip.AddrPortFrom(addr, 0)
		}
		if d.LocalAddr = net.TCPAddrFromAddrPort(at); strings.HasPrefix(os.Getenv("NETT_NETWORK"), "udp") {
			d.LocalAddr = net.UDPAddrFromAddrPort(at)
		}
	}
	for range n {
		var c net.Conn
		if os.Getenv("NETT_NETWORK") == "sctp" {
			c, err = dialSCTP(os.Getenv("NETT_TARGET"), d.Timeout)
		} else {
			c, err = d.Dial(os.Getenv("NETT_NETWORK"), os.Getenv("NETT_TARGET"))
		}
		if err != nil {
			fmt.Println("error: " + reason(err))
			continue
		}
		patience := 5 * time.Second // who has answered a SYN will say more, however busy the machine is
		if strings.HasPrefix(os.Getenv("NETT_NETWORK"), "udp") {
			patience = d.Timeout
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if strings.HasPrefix(os.Getenv("NETT_NETWORK"), "udp") {
			if _, err := c.Write([]byte("hello\n")); err != nil {
				fmt.Println("error: " + reason(err))
				continue
			}
		}
		if say := os.Getenv("NETT_SAY"); say != "" { // with \r and \n as in Go
			if say, err = strconv.Unquote(`"` + say + `"`); err != nil {
				return err
			}
			if _, err := fmt.Fprint(c, say); err != nil {
				return err
			}
		}
		in := bufio.NewReader(c)
		line, err := in.ReadString('\n')
		if err != nil {
			fmt.Println("error: " + reason(err))
			continue
		}
		fmt.Print(line)
		if os.Getenv("NETT_HOLD") != "" {
			return hold(c, in)
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

func hold(c net.Conn, in *bufio.Reader) error {
	stdin := bufio.NewReader(os.Stdin)
	if os.Getenv("NETT_HOLD") == "stream" {
		return stream(c, in)
	}
	for {
		line, err := stdin.ReadString('\n')
		if err != nil {
			return nil
		}
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err = fmt.Fprint(c, line); err == nil {
			line, err = in.ReadString('\n')
		}
		if err != nil {
			line = "error: " + reason(err) + "\n"
		}
		fmt.Print(line)
	}
}

// stream prints what comes, without a word of its own.
func stream(c net.Conn, in *bufio.Reader) error {
	if _, err := fmt.Fprintln(c, "stream"); err != nil {
		return err
	}
	for {
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		line, err := in.ReadString('\n')
		if err != nil {
			fmt.Println("error: " + reason(err))
			return nil
		}
		fmt.Print(line)
	}
}

func reason(err error) string {
	var errno syscall.Errno
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}

// blastRole sends NETT_COUNT bytes and waits until they have arrived.
func blastRole() error {
	n, err := strconv.ParseInt(os.Getenv("NETT_COUNT"), 10, 64)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", os.Getenv("NETT_TARGET"))
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for ; n > 0; n -= int64(len(buf)) {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	return err
}

// balanced is what the Service rules know of a host.
func balanced(node string, families []network.Family) (out []services.Self) {
	for _, f := range families {
		out = append(out, services.Self{Node: node, ClusterCIDR: f.ClusterCIDR, ServiceCIDR: f.ServiceCIDR, DNS: f.DNS})
	}
	return out
}

// isolated is what the rules of NetworkPolicies know of a host.
func isolated(node string, families []network.Family) (out []policy.Self) {
	for _, f := range families {
		out = append(out, policy.Self{Node: node, DNS: f.DNS})
	}
	return out
}
