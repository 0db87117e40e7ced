package podman

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rundigitalplatform/rookery/runtime"
)

// engineMemory is what a sandbox may use beyond the limit of its containers: Podman keeps
// the infra container and a conmon for each container in the same control group, of about
// 600 kB each.
const engineMemory = 8 << 20

// UpdateSandbox implements runtime.Runtime. The control group of a pod is written to,
// because Podman's API has no call for that, and 4.3 takes no limits when it makes one.
func (r *Runtime) UpdateSandbox(ctx context.Context, s runtime.Sandbox, res runtime.Resources) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update sandbox %s: %w", s.Name, err)
	}
	groups, err := r.cgroups()
	if err != nil {
		return fmt.Errorf("update sandbox %s: %w", s.Name, err)
	}
	err = groups.limitSandbox(s, res)
	if gone(err) || errors.Is(err, errNoContainer) {
		return fmt.Errorf("update sandbox %s: it does not run: %w", s.Name, runtime.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("update sandbox %s: %w", s.Name, err)
	}
	return nil
}

// setting is a file of a control group and what has to be in it. One that is optional
// is left out where the kernel has no such file.
type setting struct {
	path, value string
	optional    bool
}

// limitSandbox bounds the control group that is above all of a sandbox's containers.
func (g *cgroups) limitSandbox(s runtime.Sandbox, res runtime.Resources) error {
	at, err := g.ofSandbox(s.PID)
	if err != nil {
		return err
	}
	pod := where{cpu: g.pod(g.mounts.cpu, at.cpu), memory: g.pod(g.mounts.memory, at.memory)}
	for _, dir := range []string{pod.cpu, pod.memory} {
		// With `--cgroups` other than Podman's own, what is above is not the pod's alone.
		if dir != "" && !strings.Contains(filepath.Base(dir), s.ID) {
			return fmt.Errorf("%s is not the control group of pod %s: let Podman make one for each pod, as it does by default", dir, s.ID)
		}
	}
	settings := g.settings1(pod, res)
	if g.v2 {
		settings = settings2(pod, res)
	}
	return apply(settings)
}

// pod is the directory above a container's; empty where the controller is not mounted.
func (g *cgroups) pod(mount, infra string) string {
	if mount == "" || infra == "" {
		return ""
	}
	return filepath.Dir(g.of(mount, infra, ""))
}

// Of a control group that nobody weighed.
const (
	defaultShares = 1024
	defaultWeight = 100
)

func (g *cgroups) settings1(pod where, r runtime.Resources) []setting {
	shares, quota, memory := uint64(defaultShares), int64(-1), int64(-1)
	if r.CPUShares != 0 {
		shares = r.CPUShares
	}
	if r.CPUQuota != 0 {
		quota = r.CPUQuota
	}
	if r.MemoryLimit != 0 {
		memory = r.MemoryLimit + engineMemory
	}
	var out []setting
	if pod.cpu != "" {
		out = append(out, setting{pod.cpu + "/cpu.shares", strconv.FormatUint(shares, 10), false})
		if r.CPUQuota != 0 && r.CPUPeriod != 0 {
			out = append(out, setting{pod.cpu + "/cpu.cfs_period_us", strconv.FormatUint(r.CPUPeriod, 10), true})
		}
		out = append(out, setting{pod.cpu + "/cpu.cfs_quota_us", strconv.FormatInt(quota, 10), r.CPUQuota == 0})
	}
	limit := strconv.FormatInt(memory, 10)
	return append(out,
		setting{pod.memory + "/memory.limit_in_bytes", limit, false},
		setting{pod.memory + "/memory.memsw.limit_in_bytes", limit, true}) // memory and swap together: no swap
}

func settings2(pod where, r runtime.Resources) []setting {
	weight, quota, period, memory, swap := uint64(defaultWeight), "max", uint64(defaultPeriod), "max", "max"
	if r.CPUShares != 0 {
		weight = cpuWeight(r.CPUShares)
	}
	if r.CPUPeriod != 0 {
		period = r.CPUPeriod
	}
	if r.CPUQuota != 0 {
		quota = strconv.FormatInt(r.CPUQuota, 10)
	}
	if r.MemoryLimit != 0 {
		memory, swap = strconv.FormatInt(r.MemoryLimit+engineMemory, 10), "0"
	}
	return []setting{
		{pod.cpu + "/cpu.weight", strconv.FormatUint(weight, 10), false},
		{pod.cpu + "/cpu.max", fmt.Sprintf("%s %d", quota, period), false},
		{pod.memory + "/memory.max", memory, false},
		{pod.memory + "/memory.swap.max", swap, true},
	}
}

// cpuWeight turns shares, 2 to 262144, into a weight, 1 to 10000, as kubelet does.
func cpuWeight(shares uint64) uint64 { return 1 + (max(shares, 2)-2)*9999/262142 }

// apply writes settings. The two limits on memory of version 1 bound each other, so that
// which of them goes first depends on what was there: those that are refused go once more
// in the end.
func apply(settings []setting) error {
	var again []setting
	for _, s := range settings {
		err := s.write()
		if errors.Is(err, syscall.EINVAL) {
			again = append(again, s)
		} else if err != nil {
			return err
		}
	}
	for _, s := range again {
		if err := s.write(); err != nil {
			return err
		}
	}
	return nil
}

func (s setting) write() error {
	file, err := os.OpenFile(s.path, os.O_WRONLY, 0) // control groups are not made by writing
	if errors.Is(err, fs.ErrNotExist) && s.optional {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		// Without the directory the pod has ended; without the file alone it runs unbounded.
		if _, there := os.Stat(filepath.Dir(s.path)); there == nil {
			controller, _, _ := strings.Cut(filepath.Base(s.path), ".")
			return fmt.Errorf("the controller %q is not enabled for this control group: there is no file %s", controller, s.path)
		}
	}
	if err != nil {
		return err
	}
	_, err = file.WriteString(s.value)
	return errors.Join(err, file.Close())
}
