package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// askTimeout is for one upstream: above a slow recursion, below the 5 s that a client waits in all.
	askTimeout = 2 * time.Second
	// forwardTimeout is for a question over all upstreams, so that the client hears "no" before it gives up.
	forwardTimeout = 4 * time.Second
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

// forwarder asks the machine's resolvers what is not ours.
type forwarder struct {
	fixed  []netip.AddrPort // nil: those of file
	file   string
	self   []netip.AddrPort
	logger *slog.Logger
	cache  *answerCache
	slots  chan struct{}
	now    func() time.Time

	mu      sync.Mutex
	servers []netip.AddrPort
	checked time.Time
	modTime time.Time
	benched map[netip.AddrPort]time.Time // until when
}

func newForwarder(cfg Config) (*forwarder, error) {
	f := &forwarder{
		file: cfg.ResolvConf, self: cfg.Addrs, logger: cfg.Logger, now: time.Now, cache: newCache(cacheSize, time.Now),
		slots: make(chan struct{}, maxForwards), benched: map[netip.AddrPort]time.Time{},
	}
	if cfg.Upstreams == nil {
		return f, nil
	}
	f.fixed = []netip.AddrPort{}
	for _, s := range cfg.Upstreams {
		u, err := parseUpstream(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(f.self, u) {
			f.fixed = append(f.fixed, u)
		}
	}
	return f, nil
}

// ask answers req's one question from the cache or from the first upstream that
// has an answer. The result is the caller's own.
func (f *forwarder) ask(ctx context.Context, req *dns.Msg) (*dns.Msg, error) {
	q := req.Question[0]
	key := cacheKey{name: dns.CanonicalName(q.Name), qtype: q.Qtype, cd: req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	if msg := f.cache.get(key); msg != nil {
		return msg, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	query := new(dns.Msg)
	query.SetQuestion(key.name, q.Qtype)
	query.CheckingDisabled = key.cd
	query.SetEdns0(1232, key.do)
	msg, err := f.askAll(ctx, query)
	if err != nil {
		return nil, err
	}
	f.cache.put(key, msg)
	return msg.Copy(), nil
}

// askAll tries one upstream after the other. SERVFAIL and REFUSED of one are taken
// only if no other has anything better.
func (f *forwarder) askAll(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	servers := f.order()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	var poor *dns.Msg
	var errs []error
	for _, server := range servers {
		msg, err := askOne(ctx, server.String(), query)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", server, err))
			f.bench(server)
		case msg.Rcode == dns.RcodeServerFailure || msg.Rcode == dns.RcodeRefused:
			poor = msg
		default:
			return msg, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if poor != nil {
		return poor, nil
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

// order lists the upstreams, those that failed lately last.
func (f *forwarder) order() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fixed != nil {
		f.servers = f.fixed
	} else if now := f.now(); now.Sub(f.checked) >= resolvConfEvery || f.checked.IsZero() {
		f.checked = now
		f.reload()
	}
	now := f.now()
	var good, bad []netip.AddrPort
	for _, s := range f.servers {
		if now.Before(f.benched[s]) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
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
