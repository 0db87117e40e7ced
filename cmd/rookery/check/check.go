// Package check looks at what a machine offers and tells what it lacks to be a
// peer, each finding with its cure. `rookery check` prints all of it; `rookery
// up` stops at what is fatal. It changes nothing. Kernel features for packets
// are probed by package network, whose findings are added by the caller.
package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/dnsserver"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Level says how bad a finding is.
type Level string

const (
	OK    Level = "ok"
	Warn  Level = "warn"  // a peer runs, but not as well as it could
	Fatal Level = "fatal" // no peer can run like this
)

// Finding is one thing that was looked at.
type Finding struct {
	What  string
	Level Level
	Found string // what is there
	Cure  string // what to do; empty when OK
}

// Error makes a finding an error, in one sentence with its cure.
func (f Finding) Error() string { return fmt.Sprintf("%s: %s. %s", f.What, f.Found, f.Cure) }

// FirstFatal returns the first fatal finding as an error, or nil.
func FirstFatal(all []Finding) error {
	for _, f := range all {
		if f.Level == Fatal {
			return f
		}
	}
	return nil
}

// Root tells whether we may do what a peer does.
func Root() Finding {
	if os.Geteuid() != 0 {
		return Finding{"privileges", Fatal, fmt.Sprintf("running as user %d", os.Geteuid()), "a peer makes network interfaces and containers: run it as root (sudo rookery up)"}
	}
	return Finding{What: "privileges", Level: OK, Found: "root"}
}

// Port is a port that a peer listens on.
type Port struct {
	Network string     // tcp or udp
	Address netip.Addr // invalid: all of the machine's; it need not be there yet
	Number  uint16
	Or      string // what to do if who has it is not to be stopped
	// Without is what goes on without it: then a port that is taken is a warning. Empty: nothing does.
	Without string
}

// Ports tells which of the ports are taken by somebody else.
func Ports(ports []Port) (all []Finding) {
	for _, p := range ports {
		f := Finding{What: fmt.Sprintf("port %d/%s", p.Number, p.Network), Level: OK, Found: "free"}
		if p.Address.IsValid() {
			f.What += " of " + p.Address.String()
		}
		if err := tryListen(p); err != nil {
			f.Level, f.Found = Fatal, "cannot be used: "+err.Error()
			if errors.Is(err, syscall.EADDRINUSE) {
				f.Found = "is in use by another program"
			}
			if p.Without != "" {
				f.Level, f.Found = Warn, f.Found+"; "+p.Without
			}
			f.Cure = fmt.Sprintf("find it with `ss -lnp 'sport = :%d'` and stop it, or %s", p.Number, p.Or)
		}
		all = append(all, f)
	}
	return all
}

func tryListen(p Port) error {
	host := ""
	if p.Address.IsValid() {
		host = p.Address.String()
	}
	at := net.JoinHostPort(host, strconv.Itoa(int(p.Number)))
	lc := net.ListenConfig{Control: dnsserver.Freebind}
	if p.Network == "udp" {
		c, err := lc.ListenPacket(context.Background(), "udp", at)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := lc.Listen(context.Background(), "tcp", at)
	if err != nil {
		return err
	}
	return l.Close()
}

// minFree is what a data directory needs to be of use: room for the state's
// log and snapshots and for pods' small volumes.
const minFree = 64 << 20

// DataDir tells whether dir, or the directory it would be made in, can be written and has room.
func DataDir(dir string) Finding {
	f := Finding{What: "data directory", Level: OK}
	probe := dir
	for {
		if _, err := os.Stat(probe); err == nil || probe == "/" {
			break
		}
		probe = filepath.Dir(probe)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(probe, &st); err != nil {
		return Finding{f.What, Fatal, fmt.Sprintf("%s: %v", probe, err), "choose another with --data-dir"}
	}
	tmp, err := os.CreateTemp(probe, ".rookery-check-*")
	switch {
	case errors.Is(err, syscall.EROFS):
		return Finding{f.What, Fatal, dir + " is on a read-only file system", "remount it writable (mount -o remount,rw), check the disk if it turned read-only by itself, or choose another with --data-dir"}
	case errors.Is(err, syscall.ENOSPC):
		return Finding{f.What, Fatal, dir + " is on a full disk", "free some space, or choose another with --data-dir"}
	case err != nil:
		return Finding{f.What, Fatal, fmt.Sprintf("%s cannot be written: %v", dir, err), "make it writable for root, or choose another with --data-dir"}
	}
	tmp.Close()
	if err := os.Remove(tmp.Name()); err != nil {
		return Finding{f.What, Fatal, err.Error(), "choose another with --data-dir"}
	}
	free := st.Bavail * uint64(st.Bsize)
	if free < minFree {
		return Finding{f.What, Fatal, fmt.Sprintf("%s is on a full disk: %d MB are free, %d needed", dir, free>>20, minFree>>20), "free some space, or choose another with --data-dir"}
	}
	f.Found = fmt.Sprintf("%s, %d MB free", dir, free>>20)
	return f
}

// Clock tells whether the time can be trusted. Nothing of a peer's identity
// depends on it, but tokens, users' certificates and logs do.
func Clock(now time.Time) Finding {
	if now.Year() < 2025 {
		return Finding{"clock", Warn, "it is " + now.Format(time.DateOnly) + " here", "set it with `date`, or install chrony; join tokens and users' certificates are refused when they look expired"}
	}
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil && (state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0) {
		return Finding{"clock", Warn, now.Format(time.DateTime) + ", not synchronized", "on a network with a time server install chrony or systemd-timesyncd; a cluster without one works too"}
	}
	return Finding{What: "clock", Level: OK, Found: now.Format(time.DateTime) + ", synchronized"}
}

// Versions judges a version of the engine: why it cannot be used, and what it lacks.
type Versions struct {
	Check func(runtime.Info) error
	Lacks func(runtime.Info) []string
}

// Hangs is the cure of an engine that answers, but not about all of its containers.
const Hangs = "one of its containers hangs, and the others run on: look for storage that does not answer (`ps -eo state,pid,args | grep ^D`), and mend or unmount it"

// Engine tells whether Podman answers, is new enough and can run containers here.
func Engine(ctx context.Context, rt runtime.Runtime, socket string, versions Versions) (all []Finding) {
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := rt.Info(call)
	if errors.Is(err, context.DeadlineExceeded) {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if rt.Ping(call) == nil {
			return []Finding{{"podman", Warn, fmt.Sprintf("answers, but does not say what it is (%v)", err), Hangs}, limits()}
		}
	}
	if err != nil {
		return []Finding{{"podman", Fatal, fmt.Sprintf("does not answer at %s (%v)", socket, err),
			"install it (apt install podman) and start its API: systemctl enable --now podman.socket. Without systemd: podman system service -t 0 unix://" + socket}}
	}
	f := Finding{What: "podman", Level: OK, Found: fmt.Sprintf("%s %s with %s", info.Name, info.Version, info.OCIRuntime)}
	if err := versions.Check(info); err != nil {
		f.Level, f.Found, f.Cure = Fatal, "version "+info.Version, err.Error()
	}
	all = append(all, f)
	for _, lack := range versions.Lacks(info) {
		all = append(all, Finding{"podman " + info.Version, Warn, lack, "rookery runs with it all the same"})
	}
	return append(all, cgroups(info), limits())
}

func cgroups(info runtime.Info) Finding {
	switch {
	case info.CgroupV2:
		return Finding{What: "cgroups", Level: OK, Found: "version 2"}
	case hybrid() && strings.Contains(info.OCIRuntime, "crun"):
		return Finding{"cgroups", Fatal, "hybrid, which crun does not support",
			"boot with systemd.unified_cgroup_hierarchy=1, or use runc: apt install runc, and `[engine] runtime = \"runc\"` in /etc/containers/containers.conf"}
	}
	return Finding{"cgroups", Warn, "version 1", "boot with systemd.unified_cgroup_hierarchy=1; limits work with version 1 too, but memory is accounted less exactly"}
}

func hybrid() bool {
	var st unix.Statfs_t
	_, err := os.Stat("/sys/fs/cgroup/unified")
	return err == nil || (unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.TMPFS_MAGIC)
}

// limits recognises machines on which raising a hard limit is refused even to
// root, as in many sandboxes: every container would fail with "error setting rlimit".
func limits() Finding {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return Finding{"limits", Warn, err.Error(), "see getrlimit(2)"}
	}
	const podmanWants = 1048576
	raise := unix.Rlimit{Cur: now.Cur, Max: max(now.Max, podmanWants)}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raise)
	if err == nil {
		// Put back what was: a check changes nothing.
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &now)
	}
	if err == nil {
		return Finding{What: "limits", Level: OK, Found: "can be raised"}
	}
	if set, where := defaultUlimits(); set {
		return Finding{What: "limits", Level: OK, Found: "cannot be raised here; " + where + " tells Podman not to"}
	}
	return Finding{"limits", Fatal, "root may not raise limits here (CAP_SYS_RESOURCE is missing), and Podman does for every container",
		"put `[containers]` and `default_ulimits = [\"nofile=16384:16384\", \"nproc=32768:32768\"]` into /etc/containers/containers.conf and restart Podman"}
}

func defaultUlimits() (bool, string) {
	paths := []string{"/etc/containers/containers.conf"}
	if p := os.Getenv("CONTAINERS_CONF"); p != "" {
		paths = []string{p}
	}
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil && strings.Contains(string(data), "\ndefault_ulimits") {
			return true, p
		}
	}
	return false, ""
}
