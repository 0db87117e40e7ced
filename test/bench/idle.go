package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// daemons returns the process ids of the peers' daemons, by host.
func (b *bench) daemons() (map[string]int, error) {
	found := map[string]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		cmdline, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(cmdline), "\x00")
		if len(args) < 2 || filepath.Base(args[0]) != "rookery" || args[1] != "up" {
			continue
		}
		cwd, err := os.Readlink(d + "/cwd")
		if err != nil {
			continue
		}
		for _, h := range b.lab.Peers() {
			if cwd == b.lab.HostDir(h.Name) {
				if found[h.Name], err = strconv.Atoi(filepath.Base(d)); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(found) != len(b.lab.Peers()) {
		return nil, fmt.Errorf("found the daemons of %d peers, not of %d", len(found), len(b.lab.Peers()))
	}
	return found, nil
}

// field reads a number from a file of lines "key: value …".
func field(path, key string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && k == key {
			return strconv.ParseFloat(strings.Fields(v)[0], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// settle waits until a cluster that was just changed is idle: the last status
// has been written and garbage has been returned.
func (b *bench) settle(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// measureMemory is the resident memory of a peer, idle with 30 pods in the cluster.
func measureMemory(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, 45*time.Second); err != nil {
		return nil, err
	}
	pids, err := b.daemons()
	if err != nil {
		return nil, err
	}
	var most, anon, sum float64
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/status", pid)
		rss, err := field(path, "VmRSS")
		if err != nil {
			return nil, err
		}
		a, err := field(path, "RssAnon")
		if err != nil {
			return nil, err
		}
		most, anon, sum = max(most, rss/1024), max(anon, a/1024), sum+rss/1024
	}
	return []figure{
		{name: "memory/most", value: most, unit: "MB", yardstick: "k3s 535, Swarm 128-165", budget: 128},
		{name: "memory/mean", value: sum / float64(len(pids)), unit: "MB", yardstick: "goal 96"},
		{name: "memory/anonymous", value: anon, unit: "MB", yardstick: "-"},
	}, nil
}

// spending is what a process has used.
type spending struct{ written, cpu float64 } // bytes to storage; seconds

func spent(pid int) (spending, error) {
	written, err := field(fmt.Sprintf("/proc/%d/io", pid), "write_bytes")
	if err != nil {
		return spending{}, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return spending{}, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	user, err := strconv.ParseFloat(fields[12], 64)
	if err != nil {
		return spending{}, err
	}
	system, err := strconv.ParseFloat(fields[13], 64)
	if err != nil {
		return spending{}, err
	}
	return spending{written, (user + system) / 100}, nil // USER_HZ is 100 on Linux
}

// during is the most that any of the processes spends in that time: bytes written, and
// percent of a core.
func (b *bench) during(ctx context.Context, pids map[string]int, length time.Duration) (written, cpu float64, err error) {
	before := map[string]spending{}
	for host, pid := range pids {
		if before[host], err = spent(pid); err != nil {
			return 0, 0, err
		}
	}
	if err := b.settle(ctx, length); err != nil {
		return 0, 0, err
	}
	for host, pid := range pids {
		after, err := spent(pid)
		if err != nil {
			return 0, 0, err
		}
		written = max(written, after.written-before[host].written)
		cpu = max(cpu, (after.cpu-before[host].cpu)/length.Seconds()*100)
	}
	return written, cpu, nil
}

// measureIdle watches what an idle cluster with 30 pods costs for a minute:
// bytes that the daemons wrote to storage, and processor time.
func measureIdle(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, 20*time.Second); err != nil {
		return nil, err
	}
	pids, err := b.daemons()
	if err != nil {
		return nil, err
	}
	written, cpu, err := b.during(ctx, pids, time.Minute)
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "idle/disk-writes", value: written, unit: "bytes/min", yardstick: "-", budget: 1},
		{name: "idle/cpu", value: cpu, unit: "% of a core", yardstick: "k3s 5-10", budget: 1},
	}, nil
}
