package main

import (
	"context"
	"fmt"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// daemons returns the process ids of all peers' daemons, by host.
func (b *bench) daemons() (map[string]int, error) {
	found, err := b.lab.Daemons()
	if err == nil && len(found) != len(b.lab.Peers()) {
		err = fmt.Errorf("found the daemons of %d peers, not of %d", len(found), len(b.lab.Peers()))
	}
	return found, err
}

// settle waits until a cluster that was just changed has come to rest.
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
	if err := b.settle(ctx, lab.CalmDown); err != nil {
		return nil, err
	}
	pids, err := b.daemons()
	if err != nil {
		return nil, err
	}
	var most, anon, sum float64
	for _, pid := range pids {
		u, err := lab.UsageOf(pid)
		if err != nil {
			return nil, err
		}
		rss := megabytes(u.Resident)
		most, anon, sum = max(most, rss), max(anon, megabytes(u.Anonymous)), sum+rss
	}
	return []figure{
		{name: "memory/most", value: most, unit: "MB", yardstick: "k3s 535, Swarm 128-165", budget: 128},
		{name: "memory/mean", value: sum / float64(len(pids)), unit: "MB", yardstick: "goal 96"},
		{name: "memory/anonymous", value: anon, unit: "MB", yardstick: "-"},
	}, nil
}

func megabytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// during is the most that any of the processes spends in that time: bytes written, and
// percent of a core.
func (b *bench) during(ctx context.Context, pids map[string]int, length time.Duration) (written, cpu float64, err error) {
	before := map[string]lab.Usage{}
	for host, pid := range pids {
		if before[host], err = lab.UsageOf(pid); err != nil {
			return 0, 0, err
		}
	}
	if err := b.settle(ctx, length); err != nil {
		return 0, 0, err
	}
	for host, pid := range pids {
		after, err := lab.UsageOf(pid)
		if err != nil {
			return 0, 0, err
		}
		written = max(written, float64(after.Written-before[host].Written))
		cpu = max(cpu, (after.CPU-before[host].CPU).Seconds()/length.Seconds()*100)
	}
	return written, cpu, nil
}

// measureIdle watches what an idle cluster with 30 pods costs for a minute:
// bytes that the daemons wrote to storage, and processor time.
func measureIdle(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, lab.CalmDown); err != nil {
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
