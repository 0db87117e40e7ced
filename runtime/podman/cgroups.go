package podman

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/rundigitalplatform/rookery/runtime"
)

// errNoContainer says that a process is not a container's: its number is another's by now.
var errNoContainer = errors.New("the process is in no control group of Podman's")

// cgroups reads the counters of containers and sets the limits of sandboxes, with
// version 1 or 2 of control groups.
type cgroups struct {
	proc      string // /proc
	v2        bool
	mounts    where    // where the hierarchies are mounted; the same with version 2
	all       []string // every mounted hierarchy, with or without controllers
	container *regexp.Regexp
}

// where has a path for each controller: of the control group of a sandbox's infra
// container. That of another container of the sandbox has the same path but for the id.
// Podman has the pids of a sandbox's containers only after a look at each, this one is known.
type where struct{ spent, memory, cpu, pids string } // spent is cpuacct; cpu and pids may be empty

// set notes the path of the controllers that are in the list.
func (w *where) set(controllers []string, path string) {
	for name, to := range map[string]*string{"cpuacct": &w.spent, "memory": &w.memory, "cpu": &w.cpu, "pids": &w.pids} {
		if slices.Contains(controllers, name) {
			*to = path
		}
	}
}

// findCgroups looks where control groups are mounted. With both versions, as systemd's
// hybrid layout has them, the counters are in version 1.
func findCgroups(proc string) (*cgroups, error) {
	file, err := os.Open(filepath.Join(proc, "self", "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	defer file.Close()
	mounts, err := mountinfo.GetMountsFromReader(file, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	g := &cgroups{proc: proc, container: regexp.MustCompile(`libpod-[0-9a-f]{64}`)}
	unified := ""
	for _, m := range mounts {
		g.all = append(g.all, m.Mountpoint)
		if m.FSType == "cgroup2" {
			unified = m.Mountpoint
		} else {
			g.mounts.set(strings.Split(m.VFSOptions, ","), m.Mountpoint)
		}
	}
	if g.mounts.spent != "" && g.mounts.memory != "" {
		return g, nil
	}
	if unified == "" {
		return nil, errors.New("find control groups: neither version 1 with cpuacct and memory nor version 2 is mounted; mount /sys/fs/cgroup as systemd does")
	}
	g.v2, g.mounts = true, where{unified, unified, unified, unified}
	return g, nil
}

// ofSandbox finds the sandbox whose infra container has that pid.
func (g *cgroups) ofSandbox(pid int) (where, error) {
	data, err := os.ReadFile(filepath.Join(g.proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return where{}, err
	}
	var w where
	for line := range strings.Lines(string(data)) {
		// "NUMBER:CONTROLLERS:PATH", cgroups(7)
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 {
			continue
		}
		switch {
		case !g.v2:
			w.set(strings.Split(fields[1], ","), fields[2])
		case fields[0] == "0":
			w = where{fields[2], fields[2], fields[2], fields[2]}
		}
	}
	if !g.container.MatchString(w.spent) || !g.container.MatchString(w.memory) {
		return where{}, errNoContainer
	}
	return w, nil
}

// of is a container's directory: what an OCI runtime put below it is cut off.
func (g *cgroups) of(mount, infra, id string) string {
	parts := strings.Split(infra, "/")
	for i, p := range parts {
		if g.container.MatchString(p) {
			parts[i] = g.container.ReplaceAllString(p, "libpod-"+id)
			parts = parts[:i+1]
			break
		}
	}
	return filepath.Join(mount, filepath.Join(parts...))
}

func (g *cgroups) read(at where, id string) (runtime.Usage, error) {
	cpu, memory := g.of(g.mounts.spent, at.spent, id), g.of(g.mounts.memory, at.memory, id)
	out, err := runtime.Usage{}, error(nil)
	if g.v2 {
		out, err = readUsage(counter{cpu + "/cpu.stat", "usage_usec"}, time.Microsecond, counter{memory + "/memory.current", ""}, counter{memory + "/memory.stat", "inactive_file"})
	} else {
		out, err = readUsage(counter{cpu + "/cpuacct.usage", ""}, time.Nanosecond, counter{memory + "/memory.usage_in_bytes", ""}, counter{memory + "/memory.stat", "total_inactive_file"})
	}
	if err != nil || at.pids == "" || g.mounts.pids == "" {
		return out, err
	}
	out.Processes, err = counter{g.of(g.mounts.pids, at.pids, id) + "/pids.current", ""}.read()
	if errors.Is(err, fs.ErrNotExist) { // the controller is not enabled, or the container has just ended
		err = nil
	}
	return out, err
}

// readUsage leaves out of the memory what the kernel would drop first: kubelet's working set.
func readUsage(cpu counter, unit time.Duration, memory, inactive counter) (runtime.Usage, error) {
	now := time.Now()
	spent, err1 := cpu.read()
	all, err2 := memory.read()
	cold, err3 := inactive.read()
	if err := errors.Join(err1, err2, err3); err != nil {
		return runtime.Usage{}, err
	}
	return runtime.Usage{At: now, CPU: time.Duration(spent) * unit, Memory: max(all-cold, 0)}, nil
}

// defaultParent is where Podman puts pods if it manages control groups itself.
const defaultParent = "libpod_parent"

// sweep removes the control groups of a pod that is gone. Podman forgets those in the
// hierarchies that have no controllers of its own: with version 1 or both, where it
// manages them itself, each pod would leave two for good. One that is not empty stays.
func (g *cgroups) sweep(podID string) error {
	var errs []error
	for _, mount := range g.all {
		err := os.Remove(filepath.Join(mount, defaultParent, podID))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// counter is a number in a file: the only one, or that in the line of this name.
type counter struct{ path, name string }

func (c counter) read() (int64, error) {
	data, err := os.ReadFile(c.path)
	if err != nil {
		return 0, err
	}
	if c.name != "" {
		_, rest, found := bytes.Cut(append([]byte("\n"), data...), []byte("\n"+c.name+" "))
		if !found {
			return 0, fmt.Errorf("read %s: it has no line %s", c.path, c.name)
		}
		data, _, _ = bytes.Cut(rest, []byte("\n"))
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", c.path, err)
	}
	return n, nil
}
