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
	// resolvConfEvery is how often the file is looked at.
	resolvConfEvery = 5 * time.Second
	// maxForwards bounds the questions under way, so that a dead uplink does not eat the machine.
	maxForwards = 256
)

var (
	errNoUpstream = errors.New("no upstream name server: set one in the configuration or in /etc/resolv.conf")
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
	now     func() time.Time

	mu      sync.Mutex
	servers []netip.AddrPort
	checked time.Time
	modTime time.Time
	benched map[netip.AddrPort]time.Time // until when
}

func newForwarder(cfg Config) (*forwarder, error) {
	f := &forwarder{
		file: cfg.ResolvConf, self: cfg.Addrs, logger: cfg.Logger, now: time.Now, cache: newCache(cacheSize, time.Now),
		slots: make(chan struct{}, maxForwards), benched: map[netip.AddrPort]time.Time{}, domains: map[string][]netip.AddrPort{},
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
	servers := f.order(query.Question[0].Name)
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	var worst *dns.Msg
	var errs []error
	for _, server := range servers {
		msg, err := askOne(ctx, server.String(), query)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", server, err))
			f.bench(server)
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
	return nil, errors.Join(errs...)
}

// askOne asks by udp, and again by tcp what was too long.
func askOne(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
	client := &dns.Client{Timeout: askTimeout}
	msg, _, err := client.ExchangeContext(ctx, query.Copy(), server)
	if err == nil && msg.Truncated {
		client.Net = "tcp"
		msg, _, err = client.ExchangeContext(ctx, query.Copy(), server)
	}
	if err != nil {
		return nil, err
	}
	if len(msg.Question) != 1 || dns.CanonicalName(msg.Question[0].Name) != query.Question[0].Name {
		return nil, errors.New("answer to another question")
	}
	return msg, nil
}

func (f *forwarder) bench(server netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.benched[server] = f.now().Add(benchTime)
}

// order lists the upstreams of a canonical name, those that failed lately last.
func (f *forwarder) order(name string) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	servers, special := f.special(name)
	switch {
	case special:
	case f.fixed != nil:
		servers = f.fixed
	default:
		if now.Sub(f.checked) >= resolvConfEvery || f.checked.IsZero() {
			f.checked = now
			f.reload()
		}
		servers = f.servers
	}
	var good, bad []netip.AddrPort
	for _, s := range servers {
		if now.Before(f.benched[s]) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// special finds the servers of the longest configured domain that name is in.
func (f *forwarder) special(name string) ([]netip.AddrPort, bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if servers, ok := f.domains[name[off:]]; ok {
			return servers, true
		}
	}
	return nil, false
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
	clear(f.benched)
	for _, s := range conf.Servers {
		u, err := parseUpstream(s)
		if err != nil || slices.Contains(f.self, u) {
			continue
		}
		f.servers = append(f.servers, u)
	}
	f.logger.Info("upstream name servers", "file", f.file, "servers", f.servers)
}
