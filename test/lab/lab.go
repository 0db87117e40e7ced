// Package lab runs several real peers, with a Podman each, on one machine: every
// host is a set of namespaces (network, processes, mounts, hostname) with a
// cable to one switch. Tests, benchmarks and cmd/lab use it; it needs root.
//
// A supervisor process holds the hosts. Each host's processes live in a process
// namespace of their own, so that crashing a host takes all of it at once, as
// power loss would, and so that nothing outlives the lab: when the supervisor
// ends, however it ends, the kernel ends the hosts.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// Client is the name of the host that has no peer: a machine on the same LAN.
const Client = "client"

// Lab is a running lab, as recorded in its directory.
type Lab struct {
	Dir   string
	ID    string // begins the name of every namespace of this lab
	Hosts []Host // the peers in order, then the client
	Bin   string // directory of rookery and lab
}

// Host is one machine of the lab.
type Host struct {
	Name string
	// IP is the address by which the others know it: IPv4, or IPv6 in a lab of IPv6 only.
	IP string
	// IPv6 is on the same cable: fd77::1 beside 10.77.0.1. "" where the kernel has no IPv6.
	IPv6 string
	// NAT: the host is behind a router of its own, which lets it reach the others under the
	// router's address and ports, and nobody reach it. It has no IPv6.
	NAT bool
}

// Options is what a lab is made from.
type Options struct {
	Dir   string   // must not exist or be empty
	Peers int      // at least 1
	Bin   string   // directory that holds the rookery and lab programs
	Flags []string // further flags of `rookery up`, for every peer
	// IPv6Only gives the hosts no IPv4 address but that of loopback, and makes the cluster
	// one of IPv6.
	IPv6Only bool
	// NAT are the numbers of hosts, from 1, that are behind NAT; see Host.
	NAT []int
	// Blank leaves out the cluster: the hosts run their Podman and nothing else.
	Blank bool
}

func (l *Lab) path(elem ...string) string { return filepath.Join(append([]string{l.Dir}, elem...)...) }

// HostDir is where a host keeps its files: rookery/ (its data directory), rookery.log, podman.sock.
func (l *Lab) HostDir(host string) string { return l.path(host) }

// Host returns the host of that name.
func (l *Lab) Host(name string) (Host, error) {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return Host{}, fmt.Errorf("no host %q in the lab at %s; it has %v", name, l.Dir, l.names())
}

// Peers returns the hosts that run a peer.
func (l *Lab) Peers() []Host { return l.Hosts[:len(l.Hosts)-1] }

func (l *Lab) names() (names []string) {
	for _, h := range l.Hosts {
		names = append(names, h.Name)
	}
	return names
}

// maxDir leaves room for /hNN/run in the 50 characters that Podman allows.
const maxDir = 42

func plan(o Options) (*Lab, error) {
	if o.Peers < 1 || o.Peers > 90 {
		return nil, fmt.Errorf("a lab has 1 to 90 peers, not %d", o.Peers)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if len(dir) > maxDir {
		return nil, fmt.Errorf("%s is too long a path for a lab: Podman wants its run directory within 50 characters, so at most %d here", dir, maxDir)
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	for _, program := range []string{"rookery", "lab"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return nil, fmt.Errorf("find the programs to run: %w; build them with `make build`", err)
		}
	}
	h := fnv.New32a()
	h.Write([]byte(dir))
	l := &Lab{Dir: dir, Bin: bin, ID: fmt.Sprintf("rl%06x", h.Sum32()&0xffffff)}
	_, err = os.Stat("/proc/sys/net/ipv6")
	if err != nil && o.IPv6Only {
		return nil, errors.New("a lab of IPv6 only needs a kernel that has IPv6")
	}
	for _, i := range o.NAT {
		if i < 2 || i > o.Peers || o.IPv6Only {
			return nil, fmt.Errorf("host %d cannot be behind NAT: it can be any but the first, which the others join, in a lab with IPv4", i)
		}
	}
	for i := 1; i <= o.Peers; i++ {
		h := host("h"+strconv.Itoa(i), i, err == nil, o.IPv6Only)
		if slices.Contains(o.NAT, i) {
			h.NAT, h.IPv6, h.IP = true, "", "192.168.77."+strconv.Itoa(i)
		}
		l.Hosts = append(l.Hosts, h)
	}
	l.Hosts = append(l.Hosts, host(Client, 100, err == nil, o.IPv6Only))
	return l, nil
}

func host(name string, number int, has6, only6 bool) Host {
	h := Host{Name: name, IP: "10.77.0." + strconv.Itoa(number)}
	if has6 {
		h.IPv6 = "fd77::" + strconv.Itoa(number)
	}
	if only6 {
		h.IP = h.IPv6
	}
	return h
}

// Open returns the lab that runs in dir.
func Open(dir string) (*Lab, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(abs, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab at %s; start one with `lab up --dir %s`", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	var l Lab
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("read %s/lab.json: %w", abs, err)
	}
	return &l, nil
}

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.path("lab.json"), append(data, '\n'), 0o600)
}

// Up starts a lab and, unless it is Blank, makes its peers one cluster: it
// returns when all of them are Ready and the sample's image is on each. On error
// the lab is left as it is, for a look at its logs; Down clears it away.
func Up(ctx context.Context, o Options, say func(string)) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes network namespaces and mounts: run it as root")
	}
	l, err := plan(o)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(l.Dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty; end the lab that was there with `lab down --dir %s`", l.Dir, l.Dir)
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := l.configure(); err != nil {
		return nil, err
	}
	if err := l.wire(ctx); err != nil {
		return l, err
	}
	if err := l.supervise(ctx); err != nil {
		return l, err
	}
	if o.Blank {
		return l, nil
	}
	return l, l.Form(ctx, o.Flags, say, true)
}

// Down ends the lab and removes every trace of it. It may be called on what a
// failed Up or an earlier Down left, and on a directory with no lab.
func Down(ctx context.Context, dir string) error {
	l, err := Open(dir)
	if err != nil {
		if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	errs := []error{l.endSupervisor(ctx), l.unwire(ctx), unmountBelow(l.Dir), removeEmptyCgroups()}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end lab: %w", err)
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return fmt.Errorf("end lab: %w", err)
	}
	return nil
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	if pid <= 0 || syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	for i := len(stat) - 1; i >= 0; i-- { // the state follows the last ')'
		if stat[i] == ')' {
			return i+2 < len(stat) && stat[i+2] != 'Z'
		}
	}
	return false
}
