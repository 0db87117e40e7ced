package lab

import (
	"fmt"
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

// Usage is what a process has used since it began, and has now.
type Usage struct {
	CPU                 time.Duration
	Written             int64 // bytes, to storage
	Resident, Anonymous int64 // bytes
}

// UsageOf reads what a process uses.
func UsageOf(pid int) (Usage, error) {
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
