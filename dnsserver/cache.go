package dnsserver

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	cacheSize = 2048             // answers; about 1 MB when full
	maxTTL    = 5 * time.Minute  // so that a change upstream is seen soon, whatever it says
	maxNoTTL  = 30 * time.Second // the same for "no such name"

	// staleFor is how long after its TTL an answer is still better than none (RFC 8767: one to three days).
	staleFor = 24 * time.Hour
	// staleTTL is what clients are told of such an answer (RFC 8767).
	staleTTL = 30
	// staleRetry is how long the upstreams are left alone after they failed to renew it (RFC 8767).
	staleRetry = 30 * time.Second
)

// cacheKey is what an upstream's answer depends on.
type cacheKey struct {
	name   string // canonical
	qtype  uint16
	do, cd bool
}

// answerCache keeps upstreams' answers until their TTL is over, and beyond it for when
// nobody can be asked; the least recently used one goes first. It is safe for concurrent use.
type answerCache struct {
	now func() time.Time

	mu      sync.Mutex
	order   list.List // of *cacheEntry, newest use first
	entries map[cacheKey]*list.Element
	size    int
}

type cacheEntry struct {
	key             cacheKey
	msg             *dns.Msg // never changed
	stored, expires time.Time
	retry           time.Time // not asked again before, though it expired
}

func newCache(size int, now func() time.Time) *answerCache {
	return &answerCache{now: now, entries: map[cacheKey]*list.Element{}, size: size}
}

// get returns a copy of the answer with its TTLs counted down, or nil. fresh is
// false for one that should be asked again.
func (c *answerCache) get(key cacheKey) (msg *dns.Msg, fresh bool) {
	e := c.find(key)
	if e == nil {
		return nil, false
	}
	now := c.now()
	msg = e.msg.Copy()
	age := uint32(now.Sub(e.stored) / time.Second)
	expired := !now.Before(e.expires)
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			switch h := rr.Header(); {
			case h.Rrtype == dns.TypeOPT:
			case expired:
				h.Ttl = staleTTL
			default:
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return msg, !expired || now.Before(e.retry)
}

// find returns a copy of the entry, or nil.
func (c *answerCache) find(key cacheKey) *cacheEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.entries[key]
	if !ok {
		return nil
	}
	e := *el.Value.(*cacheEntry)
	if !c.now().Before(e.expires.Add(staleFor)) {
		c.order.Remove(el)
		delete(c.entries, key)
		return nil
	}
	c.order.MoveToFront(el)
	return &e
}

// failed notes that an expired answer could not be renewed.
func (c *answerCache) failed(key cacheKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[key]; ok {
		el.Value.(*cacheEntry).retry = c.now().Add(staleRetry)
	}
}

// put keeps msg, which the caller may not change any more, for as long as it says.
func (c *answerCache) put(key cacheKey, msg *dns.Msg) {
	life := lifetime(msg)
	if life <= 0 {
		return
	}
	now := c.now()
	e := &cacheEntry{key: key, msg: msg, stored: now, expires: now.Add(life)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[key]; ok {
		el.Value = e
		c.order.MoveToFront(el)
		return
	}
	c.entries[key] = c.order.PushFront(e)
	for len(c.entries) > c.size {
		oldest := c.order.Back()
		delete(c.entries, oldest.Value.(*cacheEntry).key)
		c.order.Remove(oldest)
	}
}

// lifetime is how long msg may be kept; 0 means not at all (RFC 2308 for "no").
func lifetime(msg *dns.Msg) time.Duration {
	if msg.Truncated || (msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError) {
		return 0
	}
	if len(msg.Answer) == 0 || msg.Rcode == dns.RcodeNameError {
		for _, rr := range msg.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNoTTL)
			}
		}
		return 0
	}
	life := maxTTL
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns} {
		for _, rr := range section {
			life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	return life
}
