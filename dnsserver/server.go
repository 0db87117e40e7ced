package dnsserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"

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
	addrs   []netip.AddrPort
	zone    zone
	forward *forwarder
	logger  *slog.Logger
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
	return &Server{addrs: cfg.Addrs, zone: z, forward: forward, logger: cfg.Logger}, nil
}

// Run serves until ctx ends and returns nil then, when all it started is gone. An
// address that cannot be bound is tried again for as long as that can help;
// the log says what is wrong and what to do. A returned error is final.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range s.addrs {
		for _, network := range []string{"udp", "tcp"} {
			g.Go(func() error {
				if err := s.serve(ctx, network, addr); err != nil {
					return fmt.Errorf("serve dns on %s/%s: %w", addr, network, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// handle answers one message. It always returns one, whatever happens in it.
func (s *Server) handle(ctx context.Context, req *dns.Msg) (resp *dns.Msg) {
	resp = new(dns.Msg)
	defer func() {
		if p := recover(); p != nil {
			s.logger.Error("question made the dns server panic", "question", req.Question, "panic", p, "stack", string(debug.Stack()))
			resp = failure(req, dns.RcodeServerFailure)
		}
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
		resp = s.answer(ctx, req)
	}
	return edns(resp, req.IsEdns0())
}

// answer answers an ordinary question from the zone or from upstream.
func (s *Server) answer(ctx context.Context, req *dns.Msg) *dns.Msg {
	q := req.Question[0]
	r, ours := s.zone.lookup(q)
	if !ours {
		return s.relay(ctx, req)
	}
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.Authoritative, resp.RecursionAvailable = true, true
	resp.Rcode, resp.Answer, resp.Ns, resp.Extra = r.rcode, r.answer, r.authority, r.extra
	s.chase(ctx, req, resp, r.chase)
	return resp
}

// chase adds what the CNAME at the end of resp leads to.
func (s *Server) chase(ctx context.Context, req, resp *dns.Msg, target string) {
	for hops := 0; target != ""; hops++ {
		if hops == maxChase {
			resp.Rcode = dns.RcodeServerFailure
			return
		}
		next := req.Copy()
		next.Question[0].Name = target
		r, ours := s.zone.lookup(next.Question[0])
		if !ours {
			got := s.relay(ctx, next)
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
func (s *Server) relay(ctx context.Context, req *dns.Msg) *dns.Msg {
	if !req.RecursionDesired {
		return failure(req, dns.RcodeRefused)
	}
	got, err := s.forward.ask(ctx, req)
	if err != nil {
		s.logger.Debug("forwarding failed", "name", req.Question[0].Name, "error", err)
		return failure(req, dns.RcodeServerFailure)
	}
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.RecursionAvailable = true
	resp.AuthenticatedData, resp.Rcode = got.AuthenticatedData, got.Rcode
	resp.Answer, resp.Ns = got.Answer, got.Ns
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
	resp.RecursionAvailable = true
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
