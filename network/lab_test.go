package network_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/rundigitalplatform/rookery/network"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// lab is a few machines, each a network namespace, on one bridge in a namespace of its own.
type lab struct {
	t     testing.TB
	name  string
	hosts []*machine
}

// machine is one host of the lab; the daemon is a process in its namespace.
type machine struct {
	lab     *lab
	name    string
	ns      string
	addr    netip.Addr // on the network between the machines
	other   netip.Addr // there, of the cluster's other IP family; zero: none
	ranges  []network.Family
	key     wgtypes.Key
	dir     string
	backend string

	started time.Time // the daemon
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	stderr  *prefixed
}

func newLab(t testing.TB, hosts int, backend string) *lab {
	t.Helper()
	return newLabOf(t, hosts, backend, "4")
}

// newLabOf makes a lab whose machines and pods have the IP families "4", "6", "46" or
// "64"; the pods' addresses come in that order. Machines talk by IPv4 where they have it.
func newLabOf(t testing.TB, hosts int, backend, families string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
			t.Skip("needs root")
		}
		t.Fatal("needs root: run as root, or set ROOKERY_SKIP_ROOT=1 to go without")
	}
	l := &lab{t: t, name: fmt.Sprintf("nett-%d", os.Getpid())}
	lan := l.name + "-lan"
	l.namespace(lan)
	l.ip("-n", lan, "link", "add", "br0", "type", "bridge")
	l.ip("-n", lan, "link", "set", "br0", "up")
	for i := 1; i <= hosts; i++ {
		m := &machine{
			lab: l, name: fmt.Sprintf("h%d", i), ns: fmt.Sprintf("%s-h%d", l.name, i), backend: backend, dir: t.TempDir(),
			addr: netip.AddrFrom4([4]byte{192, 168, 77, byte(i)}),
		}
		for _, f := range families {
			m.ranges = append(m.ranges, ranges(f, i))
		}
		var err error
		if m.key, err = wgtypes.GeneratePrivateKey(); err != nil {
			t.Fatal(err)
		}
		l.namespace(m.ns)
		port := fmt.Sprintf("l%d", i)
		l.ip("-n", lan, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", m.ns)
		l.ip("-n", lan, "link", "set", port, "master", "br0", "up")
		if strings.Contains(families, "4") {
			l.ip("-n", m.ns, "addr", "add", m.addr.String()+"/24", "dev", "eth0")
		}
		if strings.Contains(families, "6") {
			m.other = netip.MustParseAddr(fmt.Sprintf("fd77::%d", i))
			l.ip("-n", m.ns, "addr", "add", m.other.String()+"/64", "dev", "eth0", "nodad")
		}
		if families == "6" {
			m.addr, m.other = m.other, netip.Addr{}
		}
		l.ip("-n", m.ns, "link", "set", "eth0", "up")
		l.ip("-n", m.ns, "link", "set", "lo", "up")
		// A refusal is told each time, not once a second: nobody waits for one that was held back.
		m.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit && echo 0 > /proc/sys/net/ipv6/icmp/ratelimit")
		l.hosts = append(l.hosts, m)
	}
	return l
}

func ranges(family rune, host int) network.Family {
	if family == '4' {
		return network.Family{
			PodCIDR:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(host), 0}), 24),
			ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), DNS: netip.MustParseAddr("10.43.0.10"),
		}
	}
	return network.Family{
		PodCIDR:     netip.MustParsePrefix(fmt.Sprintf("fd42:0:0:%d::/64", host)),
		ClusterCIDR: netip.MustParsePrefix("fd42::/56"), ServiceCIDR: netip.MustParsePrefix("fd43::/112"), DNS: netip.MustParseAddr("fd43::a"),
	}
}

func (m *machine) cidrs() (out []netip.Prefix) {
	for _, f := range m.ranges {
		out = append(out, f.PodCIDR)
	}
	return out
}

func (l *lab) namespace(name string) {
	l.t.Helper()
	l.ip("netns", "add", name)
	l.t.Cleanup(func() {
		for _, pid := range strings.Fields(l.ip("netns", "pids", name)) { // WireGuard outlives its daemon
			if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, syscall.SIGKILL) != nil {
				l.t.Logf("process %s in %s had ended", pid, name)
			}
		}
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			l.t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
}

func (l *lab) ip(args ...string) string { l.t.Helper(); return run(l.t, "ip", args...) }

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// run runs a command in the machine's namespace.
func (m *machine) run(args ...string) string {
	m.lab.t.Helper()
	return run(m.lab.t, "nsenter", append([]string{"--net=/run/netns/" + m.ns, "--"}, args...)...)
}

// up starts the daemon on the machine, with the objects that its store has on
// disk, and waits until it is ready.
func (m *machine) up(objects ...request) {
	t := m.lab.t
	t.Helper()
	m.cmd = exec.Command("nsenter", "--net=/run/netns/"+m.ns, "--", os.Args[0])
	m.cmd.Env = append(os.Environ(), "NETT_ROLE=host", "GOMEMLIMIT=128MiB")
	m.stderr = &prefixed{prefix: m.name}
	m.cmd.Stderr = m.stderr
	var err error
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.out, m.started = bufio.NewReader(out), time.Now()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	start := request{Verb: "start", Node: m.name, Config: m.config()}
	for _, o := range objects {
		start.Services, start.Slices = o.Services, o.Slices
		start.Policies, start.Pods, start.Namespaces = o.Policies, o.Pods, o.Namespaces
	}
	m.ask(start)
}

func (m *machine) config() *network.Config {
	return &network.Config{
		Address: m.addr, Families: m.ranges, Backend: m.backend, Key: network.Key(m.key), Dir: filepath.Join(m.dir, "network"),
	}
}

// kernel is all that the daemon has made of the machine, as text.
func (m *machine) kernel() string {
	m.lab.t.Helper()
	var b strings.Builder
	for _, f := range m.ranges {
		b.WriteString(m.run("nft", "-a", "list", "table", string(f.Table()), "rookery"))
	}
	for _, args := range []string{
		"ip -o link", "ip -o addr show dev rookery0", "bridge fdb", "ip neigh show nud permanent", "ip route", "ip -6 route show proto 82", "ip -6 route show proto 83",
	} {
		b.WriteString(m.run(strings.Fields(args)...))
	}
	return b.String()
}

// at is the machine's address on the network between the machines in the family of like.
func (m *machine) at(like string) string {
	if m.other.IsValid() && m.other.Is6() == strings.Contains(like, ":") {
		return m.other.String()
	}
	return m.addr.String()
}

// own is the machine's address on the pod network in the family of like.
func (m *machine) own(like string) string {
	for _, f := range m.ranges {
		if f.PodCIDR.Addr().Is6() == strings.Contains(like, ":") {
			return f.Own().String()
		}
	}
	return ""
}

// at is the pod's address in the family of like.
func (p *pod) at(like string) string {
	for _, addr := range p.addrs {
		if strings.Contains(addr, ":") == strings.Contains(like, ":") {
			return addr
		}
	}
	return ""
}

// device is the one that leads to an address.
func (m *machine) device(addr string) string {
	m.lab.t.Helper()
	_, rest, _ := strings.Cut(m.run("ip", "route", "get", addr), " dev ")
	return strings.Fields(rest)[0]
}

// kill ends the daemon as a crash would.
func (m *machine) kill() {
	if m.cmd == nil {
		return
	}
	if err := m.cmd.Process.Kill(); err != nil {
		m.lab.t.Errorf("kill daemon: %v", err)
	}
	_ = m.cmd.Wait() // "killed" is no news
	m.cmd = nil
}

func (m *machine) ask(r request) string {
	m.lab.t.Helper()
	answer, err := m.try(r)
	if err != nil {
		m.lab.t.Fatalf("%s: %s: %v", m.name, r.Verb, err)
	}
	return answer
}

func (m *machine) try(r request) (string, error) {
	if err := json.NewEncoder(m.in).Encode(r); err != nil {
		return "", err
	}
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		return "", fmt.Errorf("the daemon is gone: %w", err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return "", fmt.Errorf("%w: %s", err, line)
	}
	if a.Error != "" {
		return "", fmt.Errorf("%s", a.Error)
	}
	return a.Text, nil
}

// peers tells every daemon of the others; the named ones are dead.
func (l *lab) peers(dead ...string) {
	l.t.Helper()
	for _, m := range l.hosts {
		if m.cmd == nil {
			continue
		}
		var peers []network.Peer
		for _, o := range l.hosts {
			if o != m && o.cmd != nil || strings.Contains(strings.Join(dead, ","), o.name) {
				peers = append(peers, o.peer(!strings.Contains(strings.Join(dead, ","), o.name)))
			}
		}
		m.ask(request{Verb: "peers", Peers: peers})
	}
}

// peer is the machine as the others know it.
func (m *machine) peer(alive bool) network.Peer {
	return network.Peer{Name: m.name, Endpoint: m.addr, Other: m.other, PodCIDRs: m.cidrs(), WireGuardKey: network.Key(m.key.PublicKey()), Started: m.started, Alive: alive}
}

// put hands objects to every running daemon, as an informer would.
func (l *lab) put(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) {
	l.t.Helper()
	for _, m := range l.hosts {
		if m.cmd != nil {
			m.ask(request{Verb: "put", Services: services, Slices: slices})
		}
	}
}

// pod is a process in a network namespace of its own, which serves TCP and UDP on 8080.
type pod struct {
	m     *machine
	uid   string
	pid   int
	addr  string   // the first of addrs
	addrs []string // one of each family
	ports []corev1.ContainerPort
}

// run runs a command in the pod's namespace.
func (p *pod) run(args ...string) string {
	p.m.lab.t.Helper()
	return run(p.m.lab.t, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", p.pid), "--"}, args...)...)
}

func (m *machine) pod(uid string, ports ...corev1.ContainerPort) *pod {
	m.lab.t.Helper()
	p := m.process(uid)
	p.ports = ports
	p.addrs = strings.Fields(m.ask(request{Verb: "attach", UID: uid, PID: p.pid, Ports: ports}))
	p.addr = p.addrs[0]
	return p
}

// process is what is in a pod, before it is attached to any network.
func (m *machine) process(uid string) *pod {
	m.lab.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return &pod{m: m, uid: uid, pid: m.serve(cmd, uid)}
}

// serves starts what is in a pod in the machine's own network.
func (m *machine) serves(name string) {
	m.lab.t.Helper()
	m.serve(exec.Command("nsenter", "--net=/run/netns/"+m.ns, "--", os.Args[0]), name)
}

func (m *machine) serve(cmd *exec.Cmd, name string) (pid int) {
	t := m.lab.t
	t.Helper()
	cmd.Env = append(os.Environ(), "NETT_ROLE=pod", "NETT_NAME="+name)
	cmd.Stderr = &prefixed{prefix: name}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("kill %s: %v", name, err)
		}
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	return cmd.Process.Pid
}

// dial connects n times to target and returns what answered, "error: …" included.
func (p *pod) dial(network, target string, n int, extra ...string) map[string]int {
	p.m.lab.t.Helper()
	return dial(p.m.lab.t, fmt.Sprintf("/proc/%d/ns/net", p.pid), network, target, n, extra...)
}

func (m *machine) dial(network, target string, n int, extra ...string) map[string]int {
	m.lab.t.Helper()
	return dial(m.lab.t, "/run/netns/"+m.ns, network, target, n, extra...)
}

func dial(t testing.TB, ns, network, target string, n int, extra ...string) map[string]int {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+ns, "--", os.Args[0])
	cmd.Env = append(append(os.Environ(), "NETT_ROLE=dial", "NETT_NETWORK="+network, "NETT_TARGET="+target, fmt.Sprintf("NETT_COUNT=%d", n)), extra...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("dial %s: %v: %s", target, err, errOut.String())
	}
	counts := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		counts[line]++
	}
	return counts
}

// eventually polls until f is content; what it says last is the failure.
func eventually(t testing.TB, within time.Duration, f func() (problem string)) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(within)
	for {
		problem := f()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, problem)
		}
		<-tick.C
	}
}

// prefixed keeps a process's log, and shows it with -v.
type prefixed struct {
	prefix string
	mu     sync.Mutex
	kept   strings.Builder
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "%s: %s", p.prefix, b)
	}
	return p.kept.Write(b)
}

func (p *prefixed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept.String()
}
