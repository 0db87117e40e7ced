package dnsserver

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// limitBuckets is how many client networks are told apart; more share what they get.
	limitBuckets = 4096
	// slip is which of the answers over the limit is sent, cut to "ask by tcp": a client
	// whose address somebody forges still gets through, and no byte is gained by forging.
	slip = 2
)

// limiter bounds the answers to each client network by udp (response rate limiting):
// whoever forges questions in a victim's name gets it no more than this. Its memory is
// fixed, about 100 kB from the first question on.
type limiter struct {
	rate int // a second; a second's worth may come at once
	now  func() time.Time
	seed maphash.Seed

	mu      sync.Mutex
	buckets []bucket
}

type bucket struct {
	at     int64 // when it was last filled, ns
	tokens float32
	over   uint32 // answers that were too many
}

// verdict is what becomes of an answer.
type verdict uint8

const (
	send verdict = iota
	truncate
	drop
)

func newLimiter(rate int) *limiter {
	return &limiter{rate: rate, now: time.Now, seed: maphash.MakeSeed()}
}

// take asks for one answer to client.
func (l *limiter) take(client netip.Addr) verdict {
	if l.rate < 0 {
		return send
	}
	bits := 24
	if client = client.Unmap().WithZone(""); client.Is6() {
		bits = 56
	}
	// The bits fit the family, so there is no error.
	network, _ := client.Prefix(bits)
	i := maphash.Comparable(l.seed, network) % limitBuckets
	now := l.now().UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.buckets = make([]bucket, limitBuckets)
	}
	b := &l.buckets[i]
	b.tokens = min(float32(l.rate), b.tokens+float32(now-b.at)/float32(time.Second)*float32(l.rate))
	b.at = now
	if b.tokens >= 1 {
		b.tokens--
		b.over = 0
		return send
	}
	if b.over++; b.over%slip == 0 {
		return truncate
	}
	return drop
}
