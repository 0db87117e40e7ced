package podman

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
)

// TestLimitSandbox writes a pod's resources where control groups of either version have them.
func TestLimitSandbox(t *testing.T) {
	const pod = "f00d"
	full := runtime.Resources{CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000, MemoryLimit: 64 << 20}
	for _, tt := range []struct {
		name, mounts, group string
		files               []string // that the kernel has, of the pod
		full, bare          string
	}{
		{"version 1", "30 30 0:27 / ROOT/acct rw - cgroup cgroup rw,cpuacct\n32 30 0:29 / ROOT/cpu rw - cgroup cgroup rw,cpu\n34 30 0:31 / ROOT/memory rw - cgroup cgroup rw,memory\n",
			"4:memory:/libpod_parent/POD/libpod-INFRA\n3:cpuacct:/libpod_parent/POD/libpod-INFRA\n2:cpu:/libpod_parent/POD/libpod-INFRA\n",
			[]string{"cpu/libpod_parent/POD/cpu.shares", "cpu/libpod_parent/POD/cpu.cfs_period_us", "cpu/libpod_parent/POD/cpu.cfs_quota_us", "memory/libpod_parent/POD/memory.limit_in_bytes", "memory/libpod_parent/POD/memory.memsw.limit_in_bytes"},
			"cpu.shares=512 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000 memory.limit_in_bytes=75497472 memory.memsw.limit_in_bytes=75497472",
			"cpu.shares=2 cpu.cfs_period_us=100000 cpu.cfs_quota_us=-1 memory.limit_in_bytes=-1 memory.memsw.limit_in_bytes=-1"},
		{"version 1 without swap accounting and quotas", hybridMounts, "4:memory:/libpod_parent/POD/libpod-INFRA\n3:cpu,cpuacct:/libpod_parent/POD/libpod-INFRA\n",
			[]string{"cpu/libpod_parent/POD/cpu.shares", "memory/libpod_parent/POD/memory.limit_in_bytes"},
			"error", "cpu.shares=2 memory.limit_in_bytes=-1"},
		{"version 2, systemd and crun", unifiedMounts, "0::/machine.slice/machine-libpod_pod_POD.slice/libpod-INFRA.scope/container\n",
			[]string{"machine.slice/machine-libpod_pod_POD.slice/cpu.weight", "machine.slice/machine-libpod_pod_POD.slice/cpu.max", "machine.slice/machine-libpod_pod_POD.slice/memory.max", "machine.slice/machine-libpod_pod_POD.slice/memory.swap.max"},
			"cpu.weight=20 cpu.max=50000 100000 memory.max=75497472 memory.swap.max=0",
			"cpu.weight=1 cpu.max=max 100000 memory.max=max memory.swap.max=max"},
		{"version 2, cgroupfs without swap", unifiedMounts, "0::/libpod_parent/POD/libpod-INFRA\n",
			[]string{"libpod_parent/POD/cpu.weight", "libpod_parent/POD/cpu.max", "libpod_parent/POD/memory.max"},
			"cpu.weight=20 cpu.max=50000 100000 memory.max=75497472", "cpu.weight=1 cpu.max=max 100000 memory.max=max"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ids := strings.NewReplacer("INFRA", infraID, "POD", pod, "ROOT", dir+"/cgroup")
			write(t, dir+"/proc/self/mountinfo", ids.Replace(tt.mounts))
			write(t, dir+"/proc/77/cgroup", ids.Replace(tt.group))
			for _, path := range tt.files {
				write(t, dir+"/cgroup/"+ids.Replace(path), "")
			}
			groups, err := findCgroups(dir + "/proc")
			if err != nil {
				t.Fatal(err)
			}
			r := &Runtime{cgroups: func() (*cgroups, error) { return groups, nil }}
			have := func(res runtime.Resources) string {
				t.Helper()
				if err := r.UpdateSandbox(t.Context(), runtime.Sandbox{ID: pod, PID: 77}, res); err != nil {
					return "error"
				}
				var out []string
				for _, path := range tt.files {
					data, err := os.ReadFile(dir + "/cgroup/" + ids.Replace(path))
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, filepath.Base(path)+"="+string(data))
				}
				return strings.Join(out, " ")
			}
			if have := have(full); have != tt.full {
				t.Errorf("have %s\nwant %s", have, tt.full)
			}
			// What a kernel's file would forget is cut off here.
			for _, path := range tt.files {
				if !strings.HasSuffix(path, "period_us") {
					write(t, dir+"/cgroup/"+ids.Replace(path), "")
				}
			}
			if have := have(runtime.Resources{CPUShares: 2}); have != tt.bare {
				t.Errorf("have %s\nwant %s", have, tt.bare)
			}
			err = r.UpdateSandbox(t.Context(), runtime.Sandbox{ID: "other", PID: 77}, full)
			if err == nil || !strings.Contains(err.Error(), "let Podman make one for each pod") {
				t.Errorf("a control group that is not the pod's alone: %v", err)
			}
			if err := r.UpdateSandbox(t.Context(), runtime.Sandbox{ID: pod, PID: 78}, full); !errors.Is(err, runtime.ErrNotFound) {
				t.Errorf("a sandbox that does not run: %v", err)
			}
		})
	}
}

// A controller that is not enabled is told; only of a pod whose control group is gone it is said
// that it does not run.
func TestLimitSandboxWithoutController(t *testing.T) {
	const pod = "f00d"
	for _, missing := range []string{"cpu.weight", "cpu.max", "memory.max"} {
		t.Run(missing, func(t *testing.T) {
			dir := t.TempDir()
			ids := strings.NewReplacer("INFRA", infraID, "POD", pod, "ROOT", dir+"/cgroup")
			write(t, dir+"/proc/self/mountinfo", ids.Replace(unifiedMounts))
			write(t, dir+"/proc/77/cgroup", ids.Replace("0::/libpod_parent/POD/libpod-INFRA\n"))
			group := dir + "/cgroup/libpod_parent/" + pod
			for _, file := range []string{"cpu.weight", "cpu.max", "memory.max"} {
				if file != missing {
					write(t, group+"/"+file, "")
				}
			}
			groups, err := findCgroups(dir + "/proc")
			if err != nil {
				t.Fatal(err)
			}
			r := &Runtime{cgroups: func() (*cgroups, error) { return groups, nil }}
			err = r.UpdateSandbox(t.Context(), runtime.Sandbox{ID: pod, PID: 77}, runtime.Resources{CPUShares: 512})
			controller, _, _ := strings.Cut(missing, ".")
			if err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), `"`+controller+`"`) {
				t.Errorf("without %s: %v", missing, err)
			}
			if err := os.RemoveAll(group); err != nil {
				t.Fatal(err)
			}
			err = r.UpdateSandbox(t.Context(), runtime.Sandbox{ID: pod, PID: 77}, runtime.Resources{CPUShares: 512})
			if !errors.Is(err, runtime.ErrNotFound) {
				t.Errorf("without its control group: %v", err)
			}
		})
	}
}

// The weights of a request of 0, 1 and 4 CPUs, and of the most there is.
func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 4096: 157, 262144: 10000} {
		if have := cpuWeight(shares); have != want {
			t.Errorf("%d shares weigh %d, want %d", shares, have, want)
		}
	}
}
