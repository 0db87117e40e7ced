package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryBudget is where the garbage collector begins to work harder. A burst may
	// take that much for a moment: collecting all the time would make it longer, and
	// tidyMemory gives it back.
	memoryBudget = 200 << 20
	// tidyInterval and tidyWorth: a burst's memory is given back within half a
	// minute, and a collection, some 40 ms, is not done for less than 6 MB.
	tidyInterval = 30 * time.Second
	tidyWorth    = 6 << 20
	// calm is less allocated in an interval than any burst does: 4 MB a second.
	calm = 4 << 20 * uint64(tidyInterval/time.Second)
)

// tuneMemory bounds what a burst may take, unless the user has said otherwise.
func tuneMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryBudget)
	}
}

// tidyMemory gives memory back to the system when a burst is over: the runtime
// alone keeps it for the next one, which on a small board may be next month.
func tidyMemory(ctx context.Context) error {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	var before uint64
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		metrics.Read(samples)
		allocs, live, objects, free := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()
		busy := allocs-before > calm
		before = allocs
		if garbage := objects - min(live, objects); !busy && garbage+free > tidyWorth {
			debug.FreeOSMemory()
		}
	}
}
