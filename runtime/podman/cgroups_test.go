package podman

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// The ids of a sandbox's infra container and of two of its containers.
var (
	infraID = strings.Repeat("1a", 32)
	oneID   = strings.Repeat("2b", 32)
	otherID = strings.Repeat("3c", 32)
)

const hybridMounts = `31 30 0:28 / ROOT/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 30 0:31 / ROOT/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 30 0:37 / ROOT/unified rw,relatime - cgroup2 cgroup2 rw
`

const unifiedMounts = `25 1 0:21 / /proc rw - proc proc rw
30 23 0:26 / ROOT rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
`

// TestCgroups reads usage from control groups as the engines of the time lay them out.
func TestCgroups(t *testing.T) {
	for _, tt := range []struct {
		name, mounts, group string
		files               map[string]string // of container one
	}{
		{"version 1, cgroupfs", hybridMounts, "4:memory:/libpod_parent/POD/libpod-INFRA\n3:cpu,cpuacct:/libpod_parent/POD/libpod-INFRA\n0::/\n", map[string]string{
			"cpu/libpod_parent/POD/libpod-ONE/cpuacct.usage":            "1500000000\n",
			"memory/libpod_parent/POD/libpod-ONE/memory.usage_in_bytes": "5000\n",
			"memory/libpod_parent/POD/libpod-ONE/memory.stat":           "cache 9\ninactive_file 7\ntotal_inactive_file 2000\n",
		}},
		{"version 2, systemd and crun", unifiedMounts, "0::/machine.slice/machine-libpod_pod_POD.slice/libpod-INFRA.scope/container\n", map[string]string{
			"machine.slice/machine-libpod_pod_POD.slice/libpod-ONE.scope/cpu.stat":       "usage_usec 1500000\nuser_usec 1\n",
			"machine.slice/machine-libpod_pod_POD.slice/libpod-ONE.scope/memory.current": "5000\n",
			"machine.slice/machine-libpod_pod_POD.slice/libpod-ONE.scope/memory.stat":    "anon 1\ninactive_file 2000\nactive_file 3\n",
		}},
		{"version 2, cgroupfs", unifiedMounts, "0::/libpod_parent/POD/libpod-INFRA\n", map[string]string{
			"libpod_parent/POD/libpod-ONE/cpu.stat":       "usage_usec 1500000\n",
			"libpod_parent/POD/libpod-ONE/memory.current": "5000\n",
			"libpod_parent/POD/libpod-ONE/memory.stat":    "inactive_file 2000\n",
			"libpod_parent/POD/libpod-ONE/pids.current":   "3\n",
		}},
		{"version 1 with process ids", hybridMounts + "35 30 0:32 / ROOT/pids rw - cgroup cgroup rw,pids\n", "8:pids:/libpod_parent/POD/libpod-INFRA\n4:memory:/libpod_parent/POD/libpod-INFRA\n3:cpu,cpuacct:/libpod_parent/POD/libpod-INFRA\n", map[string]string{
			"cpu/libpod_parent/POD/libpod-ONE/cpuacct.usage":            "1500000000\n",
			"memory/libpod_parent/POD/libpod-ONE/memory.usage_in_bytes": "5000\n",
			"memory/libpod_parent/POD/libpod-ONE/memory.stat":           "total_inactive_file 2000\n",
			"pids/libpod_parent/POD/libpod-ONE/pids.current":            "3\n",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ids := strings.NewReplacer("INFRA", infraID, "ONE", oneID, "POD", "f00d", "ROOT", dir+"/cgroup")
			write(t, dir+"/proc/self/mountinfo", ids.Replace(tt.mounts))
			write(t, dir+"/proc/77/cgroup", ids.Replace(tt.group))
			write(t, dir+"/proc/88/cgroup", "4:memory:/user.slice\n3:cpu,cpuacct:/user.slice\n0::/user.slice\n")
			for path, content := range tt.files {
				write(t, dir+"/cgroup/"+ids.Replace(path), content)
			}
			groups, err := findCgroups(dir + "/proc")
			if err != nil {
				t.Fatal(err)
			}
			r := &Runtime{cgroups: func() (*cgroups, error) { return groups, nil }}
			s := runtime.Sandbox{PID: 77, Containers: []runtime.Container{
				{ID: oneID, State: runtime.Running}, {ID: otherID, State: runtime.Created}, {ID: infraID, State: runtime.Exited},
			}}
			all, err := r.Usage(t.Context(), s)
			if n := all[oneID].Processes; n != 0 && n != 3 || n == 0 && strings.Contains(fmt.Sprint(tt.files), "pids.current") {
				t.Errorf("%d processes", n)
			}
			if u := all[oneID]; err != nil || len(all) != 1 || u.CPU != 1500*time.Millisecond || u.Memory != 3000 || time.Since(u.At) > time.Minute {
				t.Errorf("usage is %+v, %v", all, err)
			}
			for _, pid := range []int{0, 88, 99} { // never started, another's by now, gone
				s.PID = pid
				if _, err := r.Usage(t.Context(), s); !errors.Is(err, runtime.ErrNotFound) {
					t.Errorf("pid %d: %v", pid, err)
				}
			}
		})
	}
}

func TestCgroupsAreMissing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/self/mountinfo", "25 1 0:21 / /proc rw - proc proc rw\n")
	if _, err := findCgroups(dir); err == nil || !strings.Contains(err.Error(), "mount /sys/fs/cgroup") {
		t.Errorf("error is %v", err)
	}
	for content, want := range map[string]string{"": "no line a", "ba 1\n": "no line a", "a x\n": "invalid syntax"} {
		write(t, dir+"/stat", content)
		if n, err := (counter{dir + "/stat", "a"}).read(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %d, %v", content, n, err)
		}
	}
	if _, err := (counter{dir + "/none", ""}).read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSweep removes what Podman leaves of a pod, in every hierarchy, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/proc/self/mountinfo", strings.ReplaceAll(hybridMounts, "ROOT", dir+"/cgroup"))
	gone, other := dir+"/cgroup/%s/libpod_parent/"+infraID, dir+"/cgroup/%s/libpod_parent/"+otherID
	for _, hierarchy := range []string{"cpu", "unified"} {
		for _, path := range []string{gone, other} {
			if err := os.MkdirAll(fmt.Sprintf(path, hierarchy), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	groups, err := findCgroups(dir + "/proc")
	if err != nil {
		t.Fatal(err)
	}
	if err := groups.sweep(infraID); err != nil {
		t.Error(err)
	}
	for _, hierarchy := range []string{"cpu", "unified"} {
		if _, err := os.Stat(fmt.Sprintf(gone, hierarchy)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", hierarchy, err)
		}
		if _, err := os.Stat(fmt.Sprintf(other, hierarchy)); err != nil {
			t.Error(err)
		}
	}
}
