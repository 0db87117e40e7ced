package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// Daemons are the process ids of the peers' daemons, as this process sees them, by host. A
// host whose daemon does not run is not there.
func (l *Lab) Daemons() (map[string]int, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[string]int{}
	for _, p := range all {
		args, err := p.CmdLine()
		if err != nil || len(args) < 2 || !strings.HasPrefix(filepath.Base(args[0]), "rookery") || args[1] != "up" {
			continue // another one, or it has ended
		}
		cwd, err := p.Cwd()
		if err != nil {
			continue
		}
		for _, h := range l.Peers() {
			if cwd == l.HostDir(h.Name) {
				found[h.Name] = p.PID
			}
		}
	}
	return found, nil
}

// Usage is what a daemon, and the process that is WireGuard for it, have used since they
// began, and have now.
type Usage struct {
	CPU                 time.Duration
	Written             int64 // bytes, to storage
	Resident, Anonymous int64 // bytes; pages of the program, which both map, count once
}

// CalmDown is how long after a burst a daemon has also given back what the burst took, see
// cmd/rookery/memory.go: that is the burst's cost, not one of idling.
const CalmDown = 65 * time.Second

// UsageOf reads what the daemon with that process id uses.
func UsageOf(pid int) (Usage, error) {
	u, err := usageOf(pid)
	if err != nil {
		return Usage{}, err
	}
	wg, err := wireGuardOf(pid)
	if err != nil || wg == 0 {
		return u, err
	}
	w, err := usageOf(wg)
	return Usage{CPU: u.CPU + w.CPU, Written: u.Written + w.Written, Resident: u.Resident + w.Anonymous, Anonymous: u.Anonymous + w.Anonymous}, err
}

// wireGuardOf finds the process in the daemon's network that is WireGuard; 0: there is none.
func wireGuardOf(daemon int) (int, error) {
	network, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", daemon))
	if err != nil {
		return 0, err
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, p := range all {
		if args, err := p.CmdLine(); err != nil || len(args) != 2 || args[1] != "wireguard" {
			continue // another one, or it has ended
		}
		if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID)); err == nil && its == network {
			return p.PID, nil
		}
	}
	return 0, nil
}

func usageOf(pid int) (Usage, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return Usage{}, err
	}
	stat, err := p.Stat()
	if err != nil {
		return Usage{}, err
	}
	status, err := p.NewStatus()
	if err != nil {
		return Usage{}, err
	}
	io, err := p.IO()
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		CPU:     time.Duration(stat.CPUTime() * float64(time.Second)),
		Written: int64(io.WriteBytes), Resident: int64(status.VmRSS), Anonymous: int64(status.RssAnon),
	}, nil
}
