package apifuzz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// maxFaults is when it is worth no more time.
const maxFaults = 20

// oracle tells right from wrong, and counts.
type oracle struct {
	world *world

	mu       sync.Mutex
	requests int
	codes    map[string]int
	excused  map[string]int
	slowest  answer
	faults   []string
	peak     uint64 // bytes of heap
	began    time.Time
}

func newOracle(w *world) *oracle {
	return &oracle{world: w, codes: map[string]int{}, excused: map[string]int{}, began: time.Now()}
}

// excuse is an answer of 500 that kube-apiserver gives to the same request too.
type excuse struct {
	says *regexp.Regexp
	why  string
}

func excuses() []excuse {
	return []excuse{
		{regexp.MustCompile(`failed to create typed (patch|live|new) object|failed to convert (new|patch)`), "server-side apply of what the schema does not fit"},
		{regexp.MustCompile(`strconv.ParseUint: parsing `), "an object whose resourceVersion is none: the registry passes the versioner's error on"},
		{regexp.MustCompile(`resourceVersion: Invalid value: `), "a watch from what is no resourceVersion: the registry passes the storage's error on"},
		{regexp.MustCompile(`target\.(name|kind): `), "a Binding that is not valid: the registry makes no Invalid of it"},
		{regexp.MustCompile(`the agent is broken|invalid upgrade response|unexpected EOF|redirects forbidden|/containerLogs/.*: EOF`), "an agent that answers wrongly, or hangs up while it is asked for a stream"},
		{regexp.MustCompile(`Non-matching dry-run options`), "an eviction that says two things of dry run: the registry makes no BadRequest of it"},
		{regexp.MustCompile(`no unsafe deleter provided`), "deletion of a corrupt object of RBAC: its registries cannot"},
		{regexp.MustCompile(`while retrieving node .* named in the PodCertificateRequest|names node UID `), "a peer's request for a certificate that names no Node, or another one: NodeRestriction"},
		{regexp.MustCompile(`failed calling webhook`), "a webhook that cannot be called"},
		{regexp.MustCompile(`resourceVersion should not be set on objects to be created`), "a creation with a resourceVersion: the registry makes no BadRequest of it"},
		{regexp.MustCompile(`The list operation against .* could not be completed at this time`), "a list whose caller gave it no time: etcd3's store answers the same"},
		{regexp.MustCompile(`error sending request: http: Request.ContentLength=\d+ with nil Body`), "a tunnelled stream with a body: StreamTunnel takes it away and leaves its length"},
		{regexp.MustCompile(`invalid resource name `), "a namespace that no client can ask for: NamespaceLifecycle"},
	}
}

func (o *oracle) judge(a answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests++
	name := fmt.Sprint(a.code)
	if a.code == 0 {
		name = "no answer"
		if errors.Is(a.err, context.DeadlineExceeded) {
			name = "given up"
		}
	}
	o.codes[name]++
	if !a.lasting && a.took > o.slowest.took {
		o.slowest = a
	}
	switch {
	case a.code == http.StatusInternalServerError && a.raw == nil:
		o.internal(a)
	case a.code == 0 && !a.lasting && errors.Is(a.err, context.DeadlineExceeded):
		o.fault(a, "no answer in time; being served are\n"+strings.Join(serving(make([]byte, 4<<20)), "\n\n"))
	case a.code == http.StatusServiceUnavailable && strings.Contains(string(a.body), "quorum"):
		o.fault(a, "no quorum: "+string(a.body))
	}
	if p := o.world.panics.take(); p != "" {
		o.fault(a, "about then something panicked: "+p)
	}
}

// internal judges an answer of 500. The library of strategic merge patches tells mistakes
// by text alone, and upstream makes 500 of each.
func (o *oracle) internal(a answer) {
	if strings.HasPrefix(a.header.Get("Content-Type"), strategic) && !strings.Contains(string(a.body), "panic") {
		o.excused["a strategic merge patch that is none"]++
		return
	}
	for _, e := range excuses() {
		if e.says.Match(a.body) {
			o.excused[e.why]++
			return
		}
	}
	o.fault(a, "500: "+string(a.body))
}

func (o *oracle) fault(a answer, what string) {
	if len(o.faults) < maxFaults {
		o.faults = append(o.faults, what+"\n"+a.String())
	}
}

func (o *oracle) failed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.faults) >= maxFaults
}

// maxHeap bounds what server, store and clients use together, while requests of
// megabytes are under way.
const maxHeap = 700 << 20

func (o *oracle) memory(t *testing.T) {
	t.Helper()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.peak = max(o.peak, m.HeapSys-m.HeapReleased)
	t.Logf("%d requests, heap %d MiB live, %d MiB held, %d goroutines", o.requests, m.HeapAlloc>>20, (m.HeapSys-m.HeapReleased)>>20, runtime.NumGoroutine())
	if o.peak > maxHeap {
		t.Errorf("the heap grew to %d MiB, want at most %d", o.peak>>20, maxHeap>>20)
	}
}

func (o *oracle) report(t *testing.T) {
	t.Helper()
	if p := o.world.panics.take(); p != "" {
		t.Errorf("something panicked: %s", p)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.faults {
		t.Error(f)
	}
	t.Logf("%d requests in %s", o.requests, time.Since(o.began).Round(time.Second))
	for _, code := range slices.Sorted(maps.Keys(o.codes)) {
		t.Logf("%10s %d", code, o.codes[code])
	}
	for why, n := range o.excused {
		t.Logf("%6d × 500: %s", n, why)
	}
	if o.slowest.method != "" {
		t.Logf("slowest: %s, %s", o.slowest.took.Round(time.Millisecond), o.slowest.call)
	}
}
