package network_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docker makes on a machine what Docker's daemon makes: a bridge, rules that translate and
// isolate, and a policy that drops whatever else is forwarded.
const docker = `
set -e
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -t nat -A DOCKER ! -i docker0 -p tcp --dport 8888 -j DNAT --to-destination 172.17.0.2:8080
for iptables in iptables ip6tables; do
	$iptables -N DOCKER-USER
	$iptables -N DOCKER
	$iptables -P FORWARD DROP
	$iptables -A FORWARD -j DOCKER-USER
	$iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	$iptables -A FORWARD -o docker0 -j DOCKER
	$iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
	$iptables -A DOCKER-USER -j RETURN
done
iptables -A DOCKER -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp --dport 8080 -j ACCEPT
`

// Beside Docker: its rules and its bridge are as they were, its containers reach what they
// did and are reached, and what its policy takes from the pods is said with the cure.
func TestBesideDocker(t *testing.T) {
	l := newLabOf(t, 3, "wireguard", "46")
	h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
	h1.run("sh", "-c", docker)
	others := func() string {
		var out strings.Builder
		for _, table := range []string{"ip filter", "ip nat", "ip6 filter"} {
			out.WriteString(h1.run(append(strings.Fields("nft --stateless list table"), strings.Fields(table)...)...))
		}
		out.WriteString(h1.run("ip", "-o", "addr", "show", "dev", "docker0", "scope", "global"))
		return out.String()
	}
	before := others()
	h1.up()
	h2.up()
	l.peers()
	a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
	container := h1.container(t)

	check := request{Verb: "check", Ranges: allPods}
	cures := regexp.MustCompile(`-> (.*), at each start`).FindAllStringSubmatch(h1.ask(check), -1)
	if len(cures) != 2 {
		t.Fatalf("the check says:\n%s", h1.ask(check))
	}
	for i := range a.addrs {
		only(t, a.dial("tcp", on(b.addrs[i], 8080), 1, briefly), "error: timeout")
		only(t, a.dial("tcp", on(c.addrs[i], 8080), 1, briefly), "error: timeout")
	}
	if got := others(); got != before {
		t.Errorf("what was there is changed:\n%s\nbefore:\n%s", got, before)
	}
	for _, cure := range cures {
		h1.run("sh", "-c", cure[1])
	}
	if got := h1.ask(check); got != "" {
		t.Errorf("after the cures the check says:\n%s", got)
	}
	before = others()
	services, slices := l.hello(a, c)
	l.put(services, slices)
	for i, ip := range services[0].Spec.ClusterIPs {
		only(t, a.dial("tcp", on(b.addrs[i], 8080), 1), "b "+a.addrs[i])
		only(t, a.dial("tcp", on(c.addrs[i], 8080), 1), "c "+a.addrs[i])
		only(t, c.dial("tcp", on(a.addrs[i], 8080), 1), "a "+c.addrs[i])
		eventually(t, patience, func() string { return want(b.dial("tcp", on(ip, 80), enough), "a", "c") })
		eventually(t, patience, func() string { return want(outside.dial("tcp", on(h1.at(ip), 30080), enough), "a", "c") })
	}
	// Docker's own: a published port, and a container that goes out.
	only(t, outside.dial("tcp", on(h1.at(a.addrs[0]), 8888), 1), "container "+outside.addr.String())
	only(t, container.dial("tcp", on(outside.addr.String(), 9), 1), refused)

	h1.ask(request{Verb: "clean"})
	if got := others(); got != before {
		t.Errorf("what was there is changed by the end:\n%s\nbefore:\n%s", got, before)
	}
	only(t, outside.dial("tcp", on(h1.at(a.addrs[0]), 8888), 1), "container "+outside.addr.String())
}

var allPods = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}

// wall is a firewall program on a machine, with files of its own.
type wall struct {
	run    func(command string) string // what to type on the machine
	enable func()
	reload string
	tables []string // its own
}

// Ufw, and firewalld where it is installed, are turned on beside running pods: the check names
// them, what it tells one to type is enough and nothing more is needed, a reload leaves pods and
// Services as they are, and an end of ours leaves the firewall as it is.
func TestBesideFirewalls(t *testing.T) {
	for name, wallOf := range map[string]func(*machine) wall{"ufw": ufw, "firewalld": firewalld} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skip("install the package " + name)
			}
			// VXLAN needs its port open on both sides; WireGuard's two ends open each other's.
			l := newLabOf(t, 3, "vxlan", "46")
			h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
			w := wallOf(h1)
			h1.up()
			h2.up()
			l.peers()
			a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
			services, slices := l.hello(a, c)
			l.put(services, slices)
			works := func() {
				t.Helper()
				for i, ip := range services[0].Spec.ClusterIPs {
					only(t, a.dial("tcp", on(b.addrs[i], 8080), 1), "b "+a.addrs[i])
					only(t, a.dial("tcp", on(c.addrs[i], 8080), 1), "c "+a.addrs[i])
					only(t, c.dial("tcp", on(a.addrs[i], 8080), 1), "a "+c.addrs[i])
					for _, dial := range []func() map[string]int{
						func() map[string]int { return b.dial("tcp", on(ip, 80), enough) },
						func() map[string]int { return outside.dial("tcp", on(h1.at(ip), 30080), enough) },
						func() map[string]int { return outside.dial("tcp", on(h2.at(ip), 30080), enough) },
					} {
						eventually(t, patience, func() string { return want(dial(), "a", "c") })
					}
				}
			}
			works()
			check := request{Verb: "check", Ranges: allPods, Backend: h1.backend}
			if got := h1.ask(check); got != "" {
				t.Errorf("without a firewall the check says:\n%s", got)
			}

			w.enable()
			for i := range a.addrs {
				for answer := range a.dial("tcp", on(c.addrs[i], 8080), 1, briefly) {
					if !strings.HasPrefix(answer, "error: ") {
						t.Errorf("pods talk before the firewall is told: %s", answer)
					}
				}
			}
			cures := regexp.MustCompile(`-> (.*)`).FindAllStringSubmatch(h1.ask(check), -1)
			if len(cures) != len(allPods) {
				t.Fatalf("the check says:\n%s", h1.ask(check))
			}
			for _, cure := range cures {
				w.run(cure[1])
			}
			if got := h1.ask(check); got != "" {
				t.Errorf("after the cures the check says:\n%s", got)
			}
			works()

			theirs := func() (out string) {
				for _, table := range w.tables {
					out += h1.run("sh", "-c", "nft --stateless list table "+table)
				}
				return out
			}
			ours := strings.Join(settled(h1), "\n")
			w.run(w.reload)
			works()
			if got := strings.Join(canonical(h1), "\n"); got != ours {
				t.Errorf("what is ours is changed by a reload:\n%s\nbefore:\n%s", got, ours)
			}
			before := theirs()
			h1.ask(request{Verb: "clean"})
			if got := theirs(); got != before {
				t.Errorf("the firewall is changed by our end:\n%s\nbefore:\n%s", got, before)
			}
		})
	}
}

// with is a shell command that runs on a machine with copies of directories and files in place of the originals.
func (m *machine) with(copies map[string]string, environment []string, command ...string) *exec.Cmd {
	args := []string{"--net=/run/netns/" + m.ns, "--", "unshare", "--mount", "sh", "-ec", ""}
	script := ""
	for from, to := range copies {
		script += fmt.Sprintf("mount --bind %s %s; ", to, from)
	}
	args[len(args)-1] = script + `exec "$@"`
	cmd := exec.Command("nsenter", append(append(args, "sh"), command...)...)
	cmd.Env = append(os.Environ(), environment...)
	return cmd
}

// copied are copies of files and directories, by their originals.
func (m *machine) copied(paths ...string) map[string]string {
	out := map[string]string{"/run": m.lab.t.TempDir()}
	for _, path := range paths {
		out[path] = filepath.Join(m.lab.t.TempDir(), filepath.Base(path))
		run(m.lab.t, "cp", "-a", path, out[path])
	}
	return out
}

func (m *machine) typed(cmd *exec.Cmd) string {
	m.lab.t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.lab.t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

func ufw(m *machine) wall {
	files := m.copied("/etc/ufw", "/etc/default/ufw")
	w := wall{reload: "ufw reload", tables: []string{"ip filter", "ip6 filter"}}
	w.run = func(command string) string { m.lab.t.Helper(); return m.typed(m.with(files, nil, "sh", "-c", command)) }
	w.enable = func() { m.lab.t.Helper(); w.run("ufw --force reset && ufw --force enable") }
	return w
}

// bus is the configuration of a D-Bus for everybody.
const bus = `<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
</policy></busconfig>`

func firewalld(m *machine) wall {
	t := m.lab.t
	files, dir := m.copied("/etc/firewalld"), t.TempDir()
	at := filepath.Join(dir, "bus")
	environment := []string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + at}
	if err := os.WriteFile(filepath.Join(dir, "bus.conf"), fmt.Appendf(nil, bus, at), 0o644); err != nil {
		t.Fatal(err)
	}
	start := func(command ...string) {
		t.Helper()
		cmd := m.with(files, environment, command...)
		cmd.Stderr = &prefixed{prefix: command[0]}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := cmd.Process.Kill(); err != nil {
				t.Errorf("end %s: %v", command[0], err)
			}
			_ = cmd.Wait()
		})
	}
	w := wall{reload: "firewall-cmd --reload && firewall-cmd --complete-reload", tables: []string{"inet firewalld"}}
	w.run = func(command string) string {
		t.Helper()
		return m.typed(m.with(files, environment, "sh", "-c", command))
	}
	w.enable = func() {
		t.Helper()
		start("dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile")
		eventually(t, patience, func() string {
			if _, err := os.Stat(at); err != nil {
				return err.Error()
			}
			return ""
		})
		start("firewalld", "--nofork", "--nopid")
		eventually(t, patience, func() string {
			if out, err := m.with(files, environment, "firewall-cmd", "--state").CombinedOutput(); err != nil {
				return string(out)
			}
			return ""
		})
	}
	return w
}

// container is a process on the bridge docker0 with the address 172.17.0.2.
func (m *machine) container(t *testing.T) *pod {
	t.Helper()
	p := m.process("container")
	m.run("ip", "link", "add", "vethd", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(p.pid))
	m.run("ip", "link", "set", "vethd", "master", "docker0", "up")
	for _, args := range []string{"addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1"} {
		p.run(append([]string{"ip"}, strings.Fields(args)...)...)
	}
	return p
}
