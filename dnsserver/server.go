package dnsserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// maxUDP is the largest answer sent by udp: what fits every path unfragmented
// (DNS flag day 2020). Longer ones are truncated and asked again by tcp.
const maxUDP = 1232

// maxChase bounds a chain of ExternalNames that point at each other.
const maxChase = 8

// Server is the DNS server of one peer. Make it with [New].
type Server struct {
	addrs     []netip.AddrPort
	zone      zone
	lan       lanZone
	clients   clients
	forward   *forwarder
	limit     *limiter
	lookAgain time.Duration // how often the LAN's addresses are asked for
	metrics   *Metrics
	logger    *slog.Logger
}

// New checks the configuration and makes a server that does nothing until [Server.Run].
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	forward, err := newForwarder(cfg)
	if err != nil {
		return nil, err
	}
	z := zone{domain: cfg.Domain, networks: cfg.Networks, source: cfg.Source, alive: cfg.Alive, peers: cfg.Peers}
	for _, a := range cfg.Addrs {
		z.self = append(z.self, a.Addr().Unmap())
	}
	return &Server{
		addrs: slices.Clone(cfg.Addrs), zone: z, lan: lanZone{LAN: cfg.LAN, source: cfg.Source}, clients: clients{networks: cfg.Networks, lan: cfg.LAN},
		forward: forward, lookAgain: ownEvery, limit: newLimiter(cfg.LAN.Rate), metrics: cfg.Metrics, logger: cfg.Logger,
	}, nil
}

// Run serves until ctx ends and returns nil then, when all it started is gone. An
// address that cannot be bound is tried again for as long as that can help;
// the log says what is wrong and what to do. A returned error is final.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range s.addrs {
		g.Go(func() error { return s.serveBoth(ctx, addr, "pods cannot resolve names until it is free") })
	}
	if s.lan.Listen != nil {
		g.Go(func() error { s.serveLAN(ctx); return nil })
	}
	return g.Wait()
}

// serveBoth serves one address by udp and tcp. what says who suffers while it is taken.
func (s *Server) serveBoth(ctx context.Context, addr netip.AddrPort, what string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, network := range []string{"udp", "tcp"} {
		g.Go(func() error {
			if err := s.serve(ctx, network, addr, what); err != nil {
				return fmt.Errorf("serve dns on %s/%s: %w", addr, network, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// serveLAN follows the addresses for the LAN until ctx ends.
func (s *Server) serveLAN(ctx context.Context) {
	for ctx.Err() == nil {
		addrs := s.lan.Listen()
		round, end := context.WithCancel(ctx)
		var serving sync.WaitGroup
		for _, addr := range addrs {
			serving.Go(func() { s.keepLAN(round, addr) })
		}
		for tick := time.NewTicker(s.lookAgain); ; {
			select {
			case <-ctx.Done():
			case <-tick.C:
				if slices.Equal(addrs, s.lan.Listen()) {
					continue
				}
			}
			tick.Stop()
			break
		}
		end()
		serving.Wait()
	}
}

// keepLAN serves an address for the LAN until ctx ends. That it cannot be served is logged,
// the same reason once, and tried again: pods do not depend on it.
func (s *Server) keepLAN(ctx context.Context, addr netip.AddrPort) {
	said := map[string]bool{} // udp and tcp fail in turns
	for ctx.Err() == nil {
		if err := s.serveBoth(ctx, addr, "the LAN cannot resolve names until it is free"); err != nil && !said[err.Error()] {
			said[err.Error()] = true
			s.logger.Error("dns for the LAN is not served, trying again", "address", addr, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.lookAgain):
		}
	}
}

// handle answers one message as far as who may ask. It always returns one, whatever happens in it.
func (s *Server) handle(ctx context.Context, who view, req *dns.Msg) (resp *dns.Msg) {
	resp = new(dns.Msg)
	defer func() {
		if p := recover(); p != nil {
			s.logger.Error("question made the dns server panic", "question", req.Question, "panic", p, "stack", string(debug.Stack()))
			resp = failure(req, dns.RcodeServerFailure)
		}
		// Who is refused it must not take us for an open resolver.
		resp.RecursionAvailable = who.forward
	}()
	switch {
	case req.Response:
		return failure(req, dns.RcodeFormatError)
	case req.Opcode != dns.OpcodeQuery:
		return failure(req, dns.RcodeNotImplemented)
	case len(req.Question) != 1:
		return failure(req, dns.RcodeFormatError)
	}
	if opt := req.IsEdns0(); opt != nil && opt.Version() != 0 {
		return edns(failure(req, dns.RcodeBadVers), opt)
	}
	q := req.Question[0]
	switch {
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		resp = failure(req, dns.RcodeRefused)
	default:
		resp = s.answer(ctx, who, req)
	}
	return edns(resp, req.IsEdns0())
}

// answer answers an ordinary question from a zone or from upstream.
func (s *Server) answer(ctx context.Context, who view, req *dns.Msg) *dns.Msg {
	r, ours := s.local(who, req.Question[0])
	if !ours {
		return s.relay(ctx, who, req)
	}
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.Authoritative = r.rcode != dns.RcodeRefused
	resp.Rcode, resp.Answer, resp.Ns, resp.Extra = r.rcode, r.answer, r.authority, r.extra
	s.chase(ctx, who, req, resp, r.chase)
	return resp
}

// local answers from the zones; ours is false when q is in none of them.
func (s *Server) local(who view, q dns.Question) (r reply, ours bool) {
	zones := []struct {
		allowed bool
		lookup  func(dns.Question) (reply, bool)
	}{{who.lan, s.lan.lookup}, {who.cluster, s.zone.lookup}}
	for _, z := range zones {
		if r, ours := z.lookup(q); ours {
			if !z.allowed {
				r = reply{rcode: dns.RcodeRefused}
			}
			return r, true
		}
	}
	return reply{}, false
}

// chase adds what the CNAME at the end of resp leads to, as far as who may know.
func (s *Server) chase(ctx context.Context, who view, req, resp *dns.Msg, target string) {
	for hops := 0; target != ""; hops++ {
		if hops == maxChase {
			resp.Rcode = dns.RcodeServerFailure
			return
		}
		next := req.Copy()
		next.Question[0].Name = target
		r, ours := s.local(who, next.Question[0])
		switch {
		case !ours && !who.forward, ours && r.rcode == dns.RcodeRefused:
			return
		case !ours:
			got := s.relay(ctx, who, next)
			resp.Rcode, resp.Ns = got.Rcode, got.Ns
			resp.Answer = append(resp.Answer, got.Answer...)
			return
		}
		resp.Rcode, resp.Ns = r.rcode, r.authority
		resp.Answer = append(resp.Answer, r.answer...)
		target = r.chase
	}
}

// relay asks upstream. Nothing upstream can be asked: SERVFAIL.
func (s *Server) relay(ctx context.Context, who view, req *dns.Msg) *dns.Msg {
	if !req.RecursionDesired || !who.forward {
		return failure(req, dns.RcodeRefused)
	}
	got, err := s.forward.ask(ctx, req)
	if err != nil {
		s.logger.Debug("forwarding failed", "name", req.Question[0].Name, "error", err)
		return failure(req, dns.RcodeServerFailure)
	}
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.AuthenticatedData, resp.Rcode = got.AuthenticatedData, got.Rcode
	resp.Answer, resp.Ns = got.Answer, got.Ns
	for _, rr := range resp.Answer {
		// The client's own spelling, which it may check (draft-vixie-dnsext-dns0x20).
		if h := rr.Header(); strings.EqualFold(h.Name, req.Question[0].Name) {
			h.Name = req.Question[0].Name
		}
	}
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			resp.Extra = append(resp.Extra, rr)
		}
	}
	return resp
}

func failure(req *dns.Msg, rcode int) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetRcode(req, rcode)
	return resp
}

// edns answers an OPT with an OPT, and no OPT with none.
func edns(resp *dns.Msg, opt *dns.OPT) *dns.Msg {
	if opt != nil {
		resp.SetEdns0(maxUDP, opt.Do())
	}
	return resp
}

// fit cuts resp to what the client can take.
func fit(resp, req *dns.Msg, network string) *dns.Msg {
	size := dns.MaxMsgSize
	if network == "udp" {
		size = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	resp.Truncate(size)
	return resp
}
