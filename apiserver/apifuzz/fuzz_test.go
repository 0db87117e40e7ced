// Package apifuzz throws random requests at the whole API of one peer, over TLS on
// loopback and a replicated store on disk: every resource and subresource that
// discovery names, every form of body, broken and hostile ones among them, from
// administrators, peers, service accounts and nobody. Whatever is asked, nothing may
// panic, no answer may be a 500 that is ours, memory stays bounded, every request
// ends, and the server serves afterwards.
//
// A request is made from the seed, its own number and what is served, so that it can
// be made again:
//
//	FUZZ_SEED=7 FUZZ_REQUEST=1234 go test -run TestFuzz ./apiserver/apifuzz
//
// FUZZ_FOR says for how long; `make fuzz` goes on for ten minutes from a random seed.
// Without it the requests are the same 1,500 each time, one after the other.
package apifuzz

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	workers  = 8
	roundFor = 10 * time.Second // after which the world is looked at and tidied up
)

// Among other tests: how many requests, one after the other in one round, so that they
// and their answers are the same each time; and for how long at most.
const (
	few    = 1500
	fewFor = 2 * time.Minute
)

func TestFuzz(t *testing.T) {
	length, seed, only := settings(t)
	most, at, round := uint64(few), 1, fewFor
	if os.Getenv("FUZZ_FOR") != "" {
		most, at, round = math.MaxUint64, workers, roundFor
	}
	t.Logf("seed %d, for %s", seed, length)
	w := newWorld(t)
	o := newOracle(w)
	defer o.report(t)
	if only > 0 {
		o.judge(w.ask(newGenerator(w.discover(t), seed).request(only)))
		return
	}
	var next atomic.Uint64
	for end := time.Now().Add(length); time.Now().Before(end) && next.Load() < most && !o.failed(); {
		g := newGenerator(w.discover(t), seed)
		round, cancel := context.WithDeadline(t.Context(), earlier(end, time.Now().Add(round)))
		var running sync.WaitGroup
		for range at {
			running.Go(func() {
				for round.Err() == nil && !o.failed() {
					n := next.Add(1)
					if n > most {
						return
					}
					o.judge(w.ask(g.request(n)))
				}
			})
		}
		running.Wait()
		cancel()
		w.tidy(t)
		w.idle(t)
		o.memory(t)
	}
	w.serves(t)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// settings reads how long to go on, the seed, and the number of the one request to
// make, 0: all.
func settings(t *testing.T) (length time.Duration, seed, only uint64) {
	t.Helper()
	length = fewFor
	var err error
	if v := os.Getenv("FUZZ_FOR"); v != "" {
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("FUZZ_FOR: %v", err)
		}
	}
	number := func(name string) (n uint64) {
		if v := os.Getenv(name); v != "" {
			if n, err = strconv.ParseUint(v, 10, 64); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		return n
	}
	switch seed = number("FUZZ_SEED"); {
	case seed != 0:
	case os.Getenv("FUZZ_FOR") == "": // among other tests the same each time
		seed = 1
	default:
		var b [4]byte
		rand.Read(b[:])
		seed = uint64(binary.BigEndian.Uint32(b[:]))
	}
	return length, seed, number("FUZZ_REQUEST")
}
