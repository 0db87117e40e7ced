package overlay

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
	"github.com/rundigitalplatform/rookery/network/overlay/userwg"
)

// wireGuardRole in the environment makes the test binary the process that is WireGuard.
const wireGuardRole = "OVERLAY_TEST_WIREGUARD"

func TestMain(m *testing.M) {
	if os.Getenv(wireGuardRole) == "" {
		os.Exit(m.Run())
	}
	if err := userwg.Run(context.Background(), os.Stdin, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// However peers have come, gone, died, moved and hidden, and this machine moved and its daemon
// restarted, after each step the kernel and WireGuard have what a fresh start with the same peers makes.
func TestWalk(t *testing.T) {
	for _, kind := range []string{"wireguard", "vxlan", "direct"} {
		t.Run(kind, func(t *testing.T) { walk(t, kind, 50) })
	}
}

func walk(t *testing.T, kind string, steps int) {
	nfttest.Namespace(t)
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	cfg := Config{
		Own: []netip.Addr{netip.MustParseAddr("10.42.1.1"), netip.MustParseAddr("fd42:0:0:1::1")}, Address: netip.MustParseAddr("192.168.77.1"),
		Key: Key{1}, Port: 51820, MTU: 1400, Log: slog.New(slog.DiscardHandler),
		Command: []string{"env", wireGuardRole + "=1", os.Args[0]}, Dir: t.TempDir(), Began: func(time.Time) {},
	}
	segment(t)
	walked := open(t, kind, cfg)
	defer func() { walked.Remove() }()
	var peers []Peer
	for step := range steps {
		switch r.IntN(8) {
		case 0: // the daemon restarts
			if err := walked.Close(); err != nil {
				t.Fatal(err)
			}
			walked = open(t, kind, cfg)
		case 1: // the machine moves
			cfg.Address = netip.MustParseAddr([]string{"192.168.77.1", "192.168.77.101"}[r.IntN(2)])
			cfg.MTU = 1350 + 50*r.IntN(2)
			if err := walked.Move(cfg.Address, cfg.MTU); err != nil {
				t.Fatal(err)
			}
		case 2: // all that gossip knows is new
			peers = nil
			for i := 2; i <= 7; i++ {
				if r.IntN(3) > 0 {
					peers = append(peers, some(r, i))
				}
			}
		default: // one comes, goes or changes
			i := 2 + r.IntN(6)
			peers = slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return p.Name == fmt.Sprint("h", i) })
			if r.IntN(4) > 0 {
				peers = append(peers, some(r, i))
			}
		}
		said := complaint(t, walked.SetPeers(peers))
		have := state(t, walked, peers)

		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		segment(t)
		other := cfg
		other.Dir = t.TempDir()
		fresh := open(t, kind, other)
		says := complaint(t, fresh.SetPeers(peers))
		want := state(t, fresh, peers)
		if err := fresh.Remove(); err != nil {
			t.Error(err)
		}
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		if have != want || said != says {
			t.Fatalf("step %d, peers %+v: after the walk:\n%s%s\nafter a fresh start:\n%s%s", step, peers, have, said, want, says)
		}
	}
}

// some is a peer as gossip may know it at some time.
func some(r *rand.Rand, i int) Peer {
	at := i + 100*r.IntN(2)
	p := Peer{
		Name: fmt.Sprint("h", i), Endpoint: netip.MustParseAddr(fmt.Sprint("192.168.77.", at)), Alive: r.IntN(4) > 0,
		WireGuardKey: Key{byte(i), byte(r.IntN(8) / 7)}, PathMTU: []int{0, 0, 1300, 1500}[r.IntN(4)],
		Started: []time.Time{{}, time.Unix(1e9, 0), time.Unix(2e9, 0)}[r.IntN(3)], Hidden: r.IntN(5) == 0, HiddenFrom: r.IntN(5) == 0,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", i+10*(r.IntN(8)/7))), netip.MustParsePrefix(fmt.Sprintf("fd42:0:0:%d::/64", i))},
	}
	if r.IntN(4) > 0 {
		p.Other = netip.MustParseAddr(fmt.Sprint("fd77::", at))
	}
	return p
}

// segment gives the namespace that this thread is in a network, and this machine's addresses.
func segment(t *testing.T) {
	t.Helper()
	command(t, "sh", "-ec", `ip link set lo up
ip addr add 10.42.1.1/32 dev lo
ip addr add fd42:0:0:1::1/128 dev lo nodad
ip link add eth0 address 02:00:00:00:00:01 type veth peer name other
ip addr add 192.168.77.1/24 dev eth0
ip addr add 192.168.77.101/24 dev eth0
ip addr add fd77::1/64 dev eth0 nodad
ip link set eth0 up
ip link set other up`)
}

func open(t *testing.T, kind string, cfg Config) *Overlay {
	t.Helper()
	o, err := Open(kind, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// complaint is what may be missing.
func complaint(t *testing.T, err error) string {
	t.Helper()
	if err != nil && !OnlyNoAddress(err) {
		t.Error(err)
	}
	return fmt.Sprintln("error:", err)
}

// state is what there is in the kernel and in WireGuard, as text.
func state(t *testing.T, o *Overlay, peers []Peer) string {
	t.Helper()
	var out []string
	for _, args := range []string{"ip route show proto 82", "ip -6 route show proto 82", "bridge fdb", "ip neigh show nud permanent", "ip -6 neigh show nud permanent", "ip -br link show type vxlan", "ip -br link show type tun", "ip -br link show type wireguard"} {
		fields := strings.Fields(args)
		for line := range strings.Lines(command(t, fields[0], fields[1:]...)) {
			if !strings.Contains(line, "33:33:") && !strings.Contains(line, "01:00:5e:") { // groups of the device itself
				out = append(out, args+": "+line)
			}
		}
	}
	if o.kind == "wireguard" {
		out = append(out, tunnels(t, o, peers)...)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// tunnels are WireGuard's peers. Where a hidden one was before it hid, or was heard, is no matter.
func tunnels(t *testing.T, o *Overlay, peers []Peer) (out []string) {
	t.Helper()
	add := func(key Key, endpoint string, keepalive string, allowed []string) {
		if slices.ContainsFunc(peers, func(p Peer) bool { return p.Hidden && p.WireGuardKey == key }) {
			endpoint = "?"
		}
		slices.Sort(allowed)
		out = append(out, fmt.Sprintf("peer %x at %s, keepalive %s, for %s\n", key[:2], endpoint, keepalive, strings.Join(allowed, " ")))
	}
	switch w := o.b.(type) {
	case *kernelWireGuard:
		dev, err := w.ctl.Device(WireGuardDevice)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range dev.Peers {
			var allowed []string
			for _, cidr := range p.AllowedIPs {
				allowed = append(allowed, cidr.String())
			}
			add(Key(p.PublicKey), fmt.Sprint(p.Endpoint), fmt.Sprint(p.PersistentKeepaliveInterval.Seconds()), allowed)
		}
	case *userWireGuard:
		text, err := w.process.Get()
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ = strings.Cut(text, "public_key=")
		for _, one := range strings.Split(text, "public_key=") {
			var key Key
			var allowed []string
			values := map[string]string{}
			for i, line := range strings.Split(strings.TrimSpace(one), "\n") {
				name, value, _ := strings.Cut(line, "=")
				switch {
				case i == 0 && line == "": // there is no peer
					return out
				case i == 0:
					if _, err := hex.Decode(key[:], []byte(line)); err != nil {
						t.Fatal(err)
					}
				case name == "allowed_ip":
					allowed = append(allowed, value)
				default:
					values[name] = value
				}
			}
			add(key, values["endpoint"], values["persistent_keepalive_interval"], allowed)
		}
	}
	return out
}
