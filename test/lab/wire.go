package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

func (l *Lab) netns(host string) string { return l.ID + "-" + host }

func (l *Lab) lan() string { return l.netns("lan") }

// port is the switch's end of a host's cable.
func port(host string) string { return "l-" + host }

// ip runs ip(8); what it prints on failure becomes the error.
func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %s", strings.Join(args, " "), strings.TrimSpace(string(out)))
	}
	return nil
}

// wire makes the switch and, for each host, a network namespace with a cable to it.
func (l *Lab) wire(ctx context.Context) error {
	steps := [][]string{
		{"netns", "add", l.lan()},
		{"-n", l.lan(), "link", "add", "switch", "type", "bridge"},
		{"-n", l.lan(), "link", "set", "switch", "up"},
	}
	for _, h := range l.Hosts {
		steps = append(steps, []string{"netns", "add", l.netns(h.Name)})
		if h.NAT {
			steps = append(steps, l.natSteps(h)...)
		} else {
			steps = append(steps, []string{"-n", l.lan(), "link", "add", port(h.Name), "type", "veth", "peer", "name", "eth0", "netns", l.netns(h.Name)})
		}
		steps = append(steps,
			[]string{"-n", l.lan(), "link", "set", port(h.Name), "master", "switch", "up"},
			[]string{"-n", l.netns(h.Name), "link", "set", "eth0", "up"},
			[]string{"-n", l.netns(h.Name), "link", "set", "lo", "up"},
		)
		if h.IP != h.IPv6 {
			steps = append(steps, []string{"-n", l.netns(h.Name), "addr", "add", h.IP + "/24", "dev", "eth0"})
		}
		if h.IPv6 != "" { // nobody else has it: to look for duplicates would take a second
			steps = append(steps, []string{"-n", l.netns(h.Name), "addr", "add", h.IPv6 + "/64", "dev", "eth0", "nodad"})
		}
	}
	for _, step := range steps {
		if err := ip(ctx, step...); err != nil {
			return err
		}
	}
	for _, h := range l.Hosts {
		if !h.NAT {
			continue
		}
		if err := ip(ctx, "-n", l.netns(h.Name), "route", "add", "default", "via", inside); err != nil {
			return err
		}
		if err := inNetns(ctx, l.router(h.Name), natRules, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward && nft -f -"); err != nil {
			return fmt.Errorf("make the router of %s: %w", h.Name, err)
		}
	}
	return nil
}

// inside is a router's address towards its host.
const inside = "192.168.77.1"

// natRules give what leaves the router its own address and any port, as a router of a home or a
// mobile network does, and let nothing in that was not asked for.
const natRules = `table inet nat {
	chain postrouting { type nat hook postrouting priority srcnat; oifname "out" masquerade fully-random; }
	chain forward { type filter hook forward priority filter; iifname "out" ct state new drop; }
}
`

// router is the network namespace of a host's router.
func (l *Lab) router(host string) string { return l.netns(host + "-router") }

// natSteps puts a router between the switch and the host. Its address on the LAN is 100
// above the host's number.
func (l *Lab) natSteps(h Host) [][]string {
	number := netip.MustParseAddr(h.IP).As4()[3]
	outside := fmt.Sprintf("10.77.0.%d/24", 100+number)
	return [][]string{
		{"netns", "add", l.router(h.Name)},
		{"-n", l.lan(), "link", "add", port(h.Name), "type", "veth", "peer", "name", "out", "netns", l.router(h.Name)},
		{"-n", l.router(h.Name), "link", "add", "in", "type", "veth", "peer", "name", "eth0", "netns", l.netns(h.Name)},
		{"-n", l.router(h.Name), "addr", "add", outside, "dev", "out"},
		{"-n", l.router(h.Name), "addr", "add", inside + "/24", "dev", "in"},
		{"-n", l.router(h.Name), "link", "set", "out", "up"},
		{"-n", l.router(h.Name), "link", "set", "in", "up"},
	}
}

// Renumber gives the router of a host behind NAT another address on the LAN, as a provider
// does: what was under way by the old one is forgotten.
func (l *Lab) Renumber(ctx context.Context, host string, to netip.Addr) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if !h.NAT {
		return fmt.Errorf("host %s has no router", host)
	}
	if err := ip(ctx, "-n", l.router(host), "addr", "flush", "dev", "out"); err != nil {
		return err
	}
	return ip(ctx, "-n", l.router(host), "addr", "add", to.String()+"/24", "dev", "out")
}

// inNetns runs a program with some input in a network namespace.
func inNetns(ctx context.Context, netns, input string, argv ...string) error {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + netns}, argv...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (l *Lab) unwire(ctx context.Context) error {
	names := []string{l.lan()}
	for _, h := range l.Hosts {
		names = append(names, l.netns(h.Name), l.router(h.Name))
	}
	var errs []error
	for _, name := range names {
		if _, err := os.Stat("/run/netns/" + name); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, ip(ctx, "netns", "del", name))
	}
	return errors.Join(errs...)
}

// Cut pulls the host's cable.
func (l *Lab) Cut(ctx context.Context, host string) error { return l.cable(ctx, host, "down") }

// Heal plugs it in again.
func (l *Lab) Heal(ctx context.Context, host string) error { return l.cable(ctx, host, "up") }

// wallRules let nothing in that the host has not asked for.
const wallRules = `table inet wall
delete table inet wall
table inet wall {
	chain input { type filter hook input priority -200; iifname "eth0" ct state new drop; }
	chain forward { type filter hook forward priority -200; iifname "eth0" ct state new drop; }
}
`

// Wall gives the host a firewall that lets nobody dial it. Connections that are open go on.
func (l *Lab) Wall(ctx context.Context, host string) error {
	if _, err := l.Host(host); err != nil {
		return err
	}
	return inNetns(ctx, l.netns(host), wallRules, "nft", "-f", "-")
}

// Unwall takes it away again.
func (l *Lab) Unwall(ctx context.Context, host string) error {
	if _, err := l.Host(host); err != nil {
		return err
	}
	return inNetns(ctx, l.netns(host), "", "nft", "delete", "table", "inet", "wall")
}

func (l *Lab) cable(ctx context.Context, host, state string) error {
	if _, err := l.Host(host); err != nil {
		return err
	}
	return ip(ctx, "-n", l.lan(), "link", "set", port(host), state)
}

// unmountBelow unmounts what is mounted at or below dir in this mount
// namespace, the deepest first.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	var errs []error
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// removeEmptyCgroups removes the control groups that crashed hosts left. One
// that still has a process is somebody else's and cannot be removed anyway.
func removeEmptyCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/libpod_parent")
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup/libpod_parent") {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what vanishes while we walk is what we want
		})
		if err != nil {
			return err
		}
		sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
		for _, d := range dirs {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
				return err
			}
		}
	}
	return nil
}
