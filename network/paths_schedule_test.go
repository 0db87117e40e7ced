package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rundigitalplatform/rookery/network/pathmtu"
)

// ways is a network between machines, each path of which carries something; 0: it is silent.
type ways struct {
	mu      sync.Mutex
	carries map[netip.Addr]int
	looked  map[netip.Addr]int
	changes int
}

func (w *ways) find(_ context.Context, _, to netip.Addr, most int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked[to]++
	if w.carries[to] == 0 {
		return 0, pathmtu.ErrSilent
	}
	return min(w.carries[to], most), nil
}

// looks is how often a path was looked at since the last call.
func (w *ways) looks(to netip.Addr) int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.looked[to]
	w.looked[to] = 0
	return n
}

func (w *ways) carry(to netip.Addr, mtu int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.carries[to] = mtu
}

func TestWhenPathsAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ways{carries: map[netip.Addr]int{}, looked: map[netip.Addr]int{}}
		p := newPaths(slog.New(slog.DiscardHandler))
		p.find = w.find
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.run(ctx, func() { w.mu.Lock(); defer w.mu.Unlock(); w.changes++ })
		}()
		from, whole, narrow, silent := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4")
		w.carry(whole, 1500)
		w.carry(narrow, 1400)
		peers := func(most int, dead ...netip.Addr) {
			want := map[netip.Addr]way{}
			for _, to := range []netip.Addr{whole, narrow, silent} {
				want[to] = way{peer: to.String(), from: from, most: most, alive: true}
			}
			for _, to := range dead {
				want[to] = way{peer: to.String(), from: from, most: most}
			}
			p.set(want)
		}
		step := 0
		expect := func(wholes, narrows, silents, mtu, changes int) {
			t.Helper()
			step++
			got := []int{w.looks(whole), w.looks(narrow), w.looks(silent), p.mtu(narrow), w.changes}
			if want := []int{wholes, narrows, silents, mtu, changes}; fmt.Sprint(got) != fmt.Sprint(want) || p.mtu(whole) != 0 || p.mtu(silent) != 0 {
				t.Errorf("step %d: looked at whole, narrow, silent, MTU, changes %v, want %v", step, got, want)
			}
		}
		peers(1500)
		expect(1, 1, 1, 1400, 1)
		peers(1500) // nothing new
		expect(0, 0, 0, 1400, 1)
		time.Sleep(lookAgain)
		expect(0, 0, 1, 1400, 1)
		time.Sleep(lookEvery) // after 15, 30, 60, 120, 240 and 480 s
		expect(1, 1, 4, 1400, 1)

		// What routers say is a reason to look, and not all the time.
		w.carry(narrow, 1300)
		p.told(narrow)
		p.told(netip.MustParseAddr("192.0.2.9"))
		time.Sleep(lookPause)
		expect(0, 1, 0, 1300, 2)
		for range 100 * int(lookPause/time.Second) {
			p.told(narrow)
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		if got := w.looks(narrow); got != 2 { // at its beginning and its end
			t.Errorf("looked %d times in %s of a thousand messages", got, lookPause)
		}
		w.looks(silent)

		// Less is asked for, which all gets through; who sets peers writes the routes.
		peers(1300)
		expect(1, 1, 1, 0, 2)
		peers(1500)
		expect(1, 1, 1, 1300, 3)

		// The dead are not looked at, and what was known of them stays until they are back.
		peers(1500, narrow)
		time.Sleep(10 * lookEvery)
		if got := w.looks(narrow); got != 0 {
			t.Errorf("a dead peer was looked at %d times", got)
		}
		w.looks(whole)
		w.looks(silent)
		w.carry(narrow, 1500)
		if got := p.mtu(narrow); got != 1300 {
			t.Errorf("the way to a dead peer has now MTU %d", got)
		}
		peers(1500)
		expect(0, 1, 0, 0, 4)

		// A day of 50 peers is cheap.
		many := map[netip.Addr]way{}
		for i := range 50 {
			to := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
			w.carry(to, 1500)
			many[to] = way{from: from, most: 1500, alive: true}
		}
		p.set(many)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		total := 0
		for to := range many {
			total += w.looks(to)
		}
		if total < 50*144 || total > 50*161 {
			t.Errorf("%d looks at 50 peers in a day", total)
		}
		cancel()
		<-done
	})
}
