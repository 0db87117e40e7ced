package usage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticks of /proc/stat in a second: USER_HZ, which is 100 on every Linux that Go runs on.
const ticks = 100

// Machine reads the counter of this machine from proc, which is /proc.
func Machine(proc string) (Counter, error) {
	c := Counter{At: time.Now()}
	var err error
	if c.CPU, err = cpuTime(filepath.Join(proc, "stat")); err != nil {
		return Counter{}, err
	}
	c.Memory, err = workingSet(filepath.Join(proc, "meminfo"))
	return c, err
}

// cpuTime is what all CPUs were busy. See proc(5): user, nice, system, idle, iowait,
// irq, softirq; what a hypervisor took away comes after, guests are in user.
func cpuTime(path string) (time.Duration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read CPU time: the first line of %s is %q", path, line)
	}
	var busy int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %s: %w", path, err)
		}
		busy += n
	}
	return time.Duration(busy) * (time.Second / ticks), nil
}

// workingSet is memory in use without the cache of files that can be dropped at once,
// as kubelet counts it for a machine.
func workingSet(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	kib := map[string]int64{"MemTotal:": -1, "MemFree:": -1, "Inactive(file):": -1}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if _, wanted := kib[fields[0]]; wanted {
			if kib[fields[0]], err = strconv.ParseInt(fields[1], 10, 64); err != nil {
				return 0, fmt.Errorf("read memory: %s: %w", path, err)
			}
		}
	}
	for name, n := range kib {
		if n < 0 {
			return 0, fmt.Errorf("read memory: %s has no line %s", path, name)
		}
	}
	return max(kib["MemTotal:"]-kib["MemFree:"]-kib["Inactive(file):"], 0) << 10, nil
}
