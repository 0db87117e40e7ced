package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	// forgetEvery so many intervals of rest, ten minutes, what is done once in a
	// while is forgotten too.
	forgetEvery = 20
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
	rest := 0 // intervals since the last burst, the start included
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
		if busy {
			rest = 0
			continue
		}
		if rest%forgetEvery == 0 {
			if err := forgetProgram(); err != nil {
				return err
			}
		}
		rest++
	}
}

// forgetProgram gives up the pages of the program's own code and constants, of which
// a start or a burst touches far more than a peer at rest: 80 MB against 40. They stay
// in the page cache as long as nobody else wants the memory, and are mapped again when
// they are touched.
func forgetProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("find this program's pages: %w", err)
	}
	for line := range strings.Lines(string(maps)) {
		// 00400000-02a54000 r-xp 00000000 fe:00 9978153    /usr/local/bin/rookery
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[5] != self || !strings.HasPrefix(fields[1], "r-") {
			continue // what can be written exists only here
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("read /proc/self/maps: %q: %w", line, err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give up this program's pages: %w", errno)
		}
	}
	return nil
}
