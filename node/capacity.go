package node

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/rundigitalplatform/rookery/node/eviction"
)

// capacity is what the machine has.
func capacity(cfg Config) v1.ResourceList {
	out := v1.ResourceList{
		v1.ResourceCPU:    quantity(int64(goruntime.NumCPU()), resource.DecimalSI),
		v1.ResourceMemory: quantity(meminfo("MemTotal"), resource.BinarySI),
		v1.ResourcePods:   quantity(cfg.MaxPods, resource.DecimalSI),
	}
	if d, err := diskFree(cfg.Dir); err == nil {
		out[v1.ResourceEphemeralStorage] = quantity(d.total, resource.BinarySI)
	}
	return out
}

func (r *registrar) memory() int64 { return r.total.Memory().Value() }

// capacity is what the machine has now, devices included.
func (r *registrar) capacity() v1.ResourceList {
	out := r.total.DeepCopy()
	for name, n := range r.cfg.Resources.Extended {
		out[name] = quantity(n, resource.DecimalSI)
	}
	for name, n := range r.devices.Present() {
		out[name] = quantity(n, resource.DecimalSI)
	}
	return out
}

// allocatable is what pods may ask for: what is neither reserved nor so little that pods
// would be evicted for it.
func (r *registrar) allocatable() v1.ResourceList {
	out := r.capacity()
	for name, all := range out {
		kept := r.cfg.Resources.Reserved[name]
		if of := thresholdOf(name); of != "" {
			for _, t := range r.thresholds {
				if t.Signal == of && t.Grace == 0 {
					kept.Add(quantity(t.Value.Of(all.Value()), resource.BinarySI))
				}
			}
		}
		if all.Sub(kept); all.Sign() < 0 {
			all = quantity(0, all.Format)
		}
		out[name] = all
	}
	return out
}

// thresholdOf is the signal of which a hard threshold takes from what pods may ask for.
func thresholdOf(name v1.ResourceName) eviction.Signal {
	switch name {
	case v1.ResourceMemory:
		return eviction.MemoryAvailable
	case v1.ResourceEphemeralStorage:
		return eviction.NodeFSAvailable
	}
	return ""
}

// meminfo reads a line of /proc/meminfo, in bytes; 0 if it is not there.
func meminfo(name string) int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for scan := bufio.NewScanner(bytes.NewReader(data)); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) >= 2 && fields[0] == name+":" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

type disk struct{ total, free int64 }

// diskFree looks at the file system that dir is on, or will be.
func diskFree(dir string) (disk, error) {
	var st syscall.Statfs_t
	for {
		err := syscall.Statfs(dir, &st)
		if err == nil {
			return disk{int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize}, nil
		}
		if err != syscall.ENOENT || dir == "/" || dir == "." {
			return disk{}, fmt.Errorf("statfs %s: %w", dir, err)
		}
		if i := strings.LastIndexByte(dir, '/'); i > 0 {
			dir = dir[:i]
		} else {
			dir = "/"
		}
	}
}

type facts struct {
	machineID, bootID, kernel, osImage string
}

func hostFacts() facts {
	line := func(path string) string { return strings.TrimSpace(string(hostFile(path))) }
	f := facts{
		machineID: line("/etc/machine-id"),
		bootID:    line("/proc/sys/kernel/random/boot_id"),
		kernel:    line("/proc/sys/kernel/osrelease"),
		osImage:   "Linux",
	}
	for l := range strings.Lines(string(hostFile("/etc/os-release", "/usr/lib/os-release"))) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			f.osImage = strings.Trim(v, `"`)
		}
	}
	return f
}
