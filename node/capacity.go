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
)

// What is kept for the system and Rookery itself: little, for boards of 1 GB.
const (
	reservedMilliCPU  = 100
	reservedMemory    = 200 << 20
	reservedDiskShare = 10 // percent, where DiskPressure begins
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

// allocatable is what pods may ask for.
func (r *registrar) allocatable() v1.ResourceList {
	out := r.total.DeepCopy()
	cpu := max(out.Cpu().MilliValue()-reservedMilliCPU, 0)
	out[v1.ResourceCPU] = *resource.NewMilliQuantity(cpu, resource.DecimalSI)
	out[v1.ResourceMemory] = quantity(max(out.Memory().Value()-reservedMemory, 0), resource.BinarySI)
	if disk, ok := out[v1.ResourceEphemeralStorage]; ok {
		out[v1.ResourceEphemeralStorage] = quantity(disk.Value()/100*(100-reservedDiskShare), resource.BinarySI)
	}
	return out
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

func (d disk) percentFree() int64 {
	if d.total == 0 {
		return 100
	}
	return d.free * 100 / d.total
}

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
	memAvailable                       int64
}

func hostFacts() facts {
	line := func(path string) string { return strings.TrimSpace(string(hostFile(path))) }
	f := facts{
		machineID:    line("/etc/machine-id"),
		bootID:       line("/proc/sys/kernel/random/boot_id"),
		kernel:       line("/proc/sys/kernel/osrelease"),
		osImage:      "Linux",
		memAvailable: meminfo("MemAvailable"),
	}
	for l := range strings.Lines(string(hostFile("/etc/os-release", "/usr/lib/os-release"))) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			f.osImage = strings.Trim(v, `"`)
		}
	}
	return f
}
