package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// askTimeout is for one upstream: above a slow recursion, below the 5 s that a client waits in all.
	askTimeout = 2 * time.Second
	// forwardTimeout is for a question over all upstreams, so that the client hears "no" before it gives up.
	forwardTimeout = 4 * time.Second
	// renewTimeout is the same where an old answer is at hand (RFC 8767's client response timer).
	renewTimeout = 1800 * time.Millisecond
	// benchTime is how long an upstream that failed is asked last.
	benchTime = 10 * time.Second
	// awayAfter is how many questions in a row each server of a domain leaves unanswered until all are
	// suspected to be away: more than a lost packet. If they leave one of our own unanswered too, questions fail at once.
	awayAfter = 3
	// probeEvery is how often one question asks servers that are away nevertheless.
	probeEvery = time.Second
	// resolvConfEvery is how often the file is looked at.
	resolvConfEvery = 5 * time.Second
	// maxForwards bounds the questions under way, so that a dead uplink does not eat the machine.
	maxForwards = 256
)

var (
	errNoUpstream = errors.New("no upstream name server: set one in the configuration or in /etc/resolv.conf")
	errAway       = errors.New("none of the upstream name servers has answered lately")
	errBusy       = errors.New("too many questions wait for the upstream name servers")
)

// forwarder asks other servers what is not ours: those of the configuration for
// their domains, for all else the machine's resolvers.
type forwarder struct {
	fixed   []netip.AddrPort // nil: those of file
	domains map[string][]netip.AddrPort
	file    string
	self    []netip.AddrPort
	logger  *slog.Logger
	metrics *Metrics
	cache   *answerCache
	slots   chan struct{}
	asking  singleflight.Group // by cacheKey: a question is under way once
	probing singleflight.Group // by zone
	now     func() time.Time

	mu      sync.Mutex
	servers []netip.AddrPort
	checked time.Time
	modTime time.Time
	health  map[netip.AddrPort]health
	away    map[string]time.Time // by zone, of those whose servers are all away: when a question asks them again
}

// health is of a server that has been asked. Questions overlap, and what they say of it counts in the order in
// which they were asked.
type health struct {
	answered time.Time // last; a question from before says nothing any more
	failed   int       // questions one after the other, since then
	counted  time.Time // the last of them ended
	until    time.Time // it is asked last
}

func newForwarder(cfg Config) (*forwarder, error) {
	f := &forwarder{
		file: cfg.ResolvConf, self: cfg.Addrs, logger: cfg.Logger, now: time.Now, cache: newCache(cacheSize, time.Now),
		slots: make(chan struct{}, maxForwards), health: map[netip.AddrPort]health{}, away: map[string]time.Time{}, domains: map[string][]netip.AddrPort{},
		metrics: cfg.Metrics,
	}
	for domain, servers := range cfg.Forward {
		parsed, err := f.parse(servers)
		if err != nil {
			return nil, err
		}
		f.domains[dns.CanonicalName(domain)] = parsed
	}
	if cfg.Upstreams == nil {
		return f, nil
	}
	var err error
	f.fixed, err = f.parse(cfg.Upstreams)
	return f, err
}

// parse reads servers and leaves out ourselves; the result is not nil.
func (f *forwarder) parse(servers []string) ([]netip.AddrPort, error) {
	out := []netip.AddrPort{}
	for _, s := range servers {
		u, err := parseUpstream(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(f.self, u) {
			out = append(out, u)
		}
	}
	return out, nil
}

// ask answers req's one question from the cache or from the first upstream that
// has an answer; an answer that is too old is better than none (RFC 8767). The
// result is the caller's own.
func (f *forwarder) ask(ctx context.Context, req *dns.Msg) (*dns.Msg, error) {
	q := req.Question[0]
	key := cacheKey{name: dns.CanonicalName(q.Name), qtype: q.Qtype, cd: req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	old, fresh := f.cache.get(key)
	if fresh {
		f.metrics.forward.WithLabelValues("cached").Inc()
		return old, nil
	}
	timeout := forwardTimeout
	if old != nil {
		timeout = renewTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	msg, err := f.once(ctx, key)
	if old != nil && (err != nil || poor(msg)) {
		f.cache.failed(key)
		f.metrics.forward.WithLabelValues("stale").Inc()
		return old, nil
	}
	result := "asked"
	if err != nil {
		result = "failed"
	}
	f.metrics.forward.WithLabelValues(result).Inc()
	return msg, err
}

// once asks upstream, one time for all who wait for the same answer.
func (f *forwarder) once(ctx context.Context, key cacheKey) (*dns.Msg, error) {
	done := f.asking.DoChan(fmt.Sprint(key), func() (_ any, err error) {
		// It runs by itself, where nobody else would catch a panic.
		defer func() {
			if p := recover(); p != nil {
				f.logger.Error("asking upstream panicked", "name", key.name, "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("asking upstream panicked: %v", p)
			}
		}()
		if msg, fresh := f.cache.get(key); fresh {
			return msg, nil // who asked before came back in between
		}
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		default:
			return nil, errBusy
		}
		// It goes on for the others when the client that came first gives up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardTimeout)
		defer cancel()
		query := new(dns.Msg)
		query.SetQuestion(key.name, key.qtype)
		query.CheckingDisabled = key.cd
		query.SetEdns0(maxUDP, key.do)
		msg, err := f.askAll(ctx, query)
		if err != nil {
			return nil, err
		}
		f.cache.put(key, msg)
		return msg, nil
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*dns.Msg).Copy(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no upstream answered: %w", ctx.Err())
	}
}

// poor says that a server answered that it has no answer.
func poor(msg *dns.Msg) bool {
	return msg.Rcode == dns.RcodeServerFailure || msg.Rcode == dns.RcodeRefused
}

// askAll tries one upstream after the other. SERVFAIL and REFUSED of one are taken
// only if no other has anything better.
func (f *forwarder) askAll(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	zone, all, servers := f.order(query.Question[0].Name)
	switch {
	case len(all) == 0:
		return nil, errNoUpstream
	case len(servers) == 0:
		return nil, errAway
	}
	var worst *dns.Msg
	var errs []error
	for _, server := range servers {
		began := f.now()
		msg, err := askOne(ctx, server.String(), query)
		if msg != nil {
			f.answered(server, zone)
		} else {
			f.failed(server, began)
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", server, err))
		case poor(msg):
			worst = msg
		default:
			return msg, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if worst != nil {
		return worst, nil
	}
	err := errors.Join(errs...)
	if f.suspected(all) && !f.probe(ctx, zone, all) {
		f.putAway(zone, all, err)
	}
	return nil, err
}

// askOne asks by udp, and again by tcp what was too long. With an error, a message is what
// the server has said nevertheless.
func askOne(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Timeout: askTimeout}
	msg, _, err := client.ExchangeContext(ctx, query.Copy(), server)
	if err != nil {
		return nil, err
	}
	if msg.Truncated {
		client.Net = "tcp"
		whole, _, err := client.ExchangeContext(ctx, query.Copy(), server)
		if err != nil {
			return msg, err
		}
		msg = whole
	}
	if len(msg.Question) != 1 || dns.CanonicalName(msg.Question[0].Name) != query.Question[0].Name {
		return nil, errors.New("answer to another question")
	}
	return msg, nil
}

// probe asks all servers of a zone at once for its name servers, and tells whether one says anything. A
// name that nobody has an answer for, asked again and again, is so not taken for servers that are away.
func (f *forwarder) probe(ctx context.Context, zone string, all []netip.AddrPort) bool {
	alive, _, _ := f.probing.Do(zone, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		query := new(dns.Msg).SetQuestion(zone, dns.TypeNS)
		heard := make(chan bool, len(all))
		for _, server := range all {
			go func() {
				msg, _ := askOne(ctx, server.String(), query)
				if msg != nil {
					f.answered(server, zone)
				}
				heard <- msg != nil
			}()
		}
		for range all {
			if <-heard {
				return true, nil
			}
		}
		return false, nil
	})
	return alive.(bool)
}

// failed notes that a server has left a question unanswered that was asked when it began.
func (f *forwarder) failed(server netip.AddrPort, began time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.health[server]
	if began.Before(h.answered) {
		return
	}
	now := f.now()
	if !began.Before(h.counted) {
		h.failed, h.counted = h.failed+1, now
	}
	h.until = now.Add(benchTime)
	f.health[server] = h
}

// answered notes that a server, one of those of zone, has said something.
func (f *forwarder) answered(server netip.AddrPort, zone string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health[server] = health{answered: f.now()}
	if _, was := f.away[zone]; was {
		f.logger.Info("name servers answer again", "server", server)
		delete(f.away, zone)
	}
}

// suspected tells whether all servers have left so many questions unanswered that they may be away.
func (f *forwarder) suspected(all []netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.silent(all)
}

// silent is suspected; f.mu is held.
func (f *forwarder) silent(all []netip.AddrPort) bool {
	return !slices.ContainsFunc(all, func(s netip.AddrPort) bool { return f.health[s].failed < awayAfter })
}

// putAway lets the questions to the servers of zone fail from now on, unless one has answered just now.
func (f *forwarder) putAway(zone string, all []netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.away[zone]; known || !f.silent(all) {
		return
	}
	f.logger.Warn("name servers do not answer; names that they are asked for fail until one does", "servers", all, "error", err)
	f.away[zone] = f.now().Add(probeEvery)
}

// order returns the zone that has its own upstreams and that a canonical name is in, all of them, and those to ask,
// the ones that failed lately last; none while all are away.
func (f *forwarder) order(name string) (zone string, all, ask []netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	zone, all = f.special(name)
	switch {
	case zone != ".":
	case f.fixed != nil:
		all = f.fixed
	default:
		if now.Sub(f.checked) >= resolvConfEvery || f.checked.IsZero() {
			f.checked = now
			f.reload()
		}
		all = f.servers
	}
	if next, away := f.away[zone]; away {
		if now.Before(next) {
			return zone, all, nil
		}
		f.away[zone] = now.Add(probeEvery)
	}
	var bad []netip.AddrPort
	for _, s := range all {
		if now.Before(f.health[s].until) {
			bad = append(bad, s)
		} else {
			ask = append(ask, s)
		}
	}
	// Not all may have their turn before the client gives up.
	slices.SortStableFunc(bad, func(a, b netip.AddrPort) int { return f.health[a].until.Compare(f.health[b].until) })
	return zone, all, append(ask, bad...)
}

// special finds the longest configured domain that name is in, and its servers; "." if there is none.
func (f *forwarder) special(name string) (string, []netip.AddrPort) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if servers, ok := f.domains[name[off:]]; ok {
			return name[off:], servers
		}
	}
	return ".", nil
}

// reload reads the resolver file if it has changed: DHCP rewrites it. f.mu is held.
func (f *forwarder) reload() {
	info, err := os.Stat(f.file)
	if err != nil {
		f.logger.Warn("cannot read upstream name servers", "file", f.file, "error", err)
		f.servers, f.modTime = nil, time.Time{}
		return
	}
	if info.ModTime().Equal(f.modTime) {
		return
	}
	conf, err := dns.ClientConfigFromFile(f.file)
	if err != nil {
		f.logger.Warn("cannot read upstream name servers", "file", f.file, "error", err)
		return
	}
	f.modTime, f.servers = info.ModTime(), nil
	clear(f.health)
	clear(f.away)
	for _, s := range conf.Servers {
		u, err := parseUpstream(s)
		if err != nil || slices.Contains(f.self, u) {
			continue
		}
		f.servers = append(f.servers, u)
	}
	f.logger.Info("upstream name servers", "file", f.file, "servers", f.servers)
}
