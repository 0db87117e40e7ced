package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

const (
	// rebindEvery is how often a taken address is tried again.
	rebindEvery = time.Second
	// tcpIdle is how long an idle tcp client may keep its connection (RFC 7766 asks for seconds).
	tcpIdle = 5 * time.Second
	// maxConns bounds the tcp clients of one address.
	maxConns = 256
	// drain is how long answers under way may take when the server stops.
	drain = time.Second
)

// serve binds one address and answers on it until ctx ends. what says who suffers meanwhile.
func (s *Server) serve(ctx context.Context, network string, addr netip.AddrPort, what string) error {
	srv, err := s.bind(ctx, network, addr, what)
	if err != nil || srv == nil {
		return err
	}
	// Questions under way are cut when the server stops.
	qctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		resp := s.respond(qctx, clientOf(w.RemoteAddr()), network, req)
		if resp == nil {
			return
		}
		if err := w.WriteMsg(resp); err != nil {
			s.logger.Debug("cannot send dns answer", "to", w.RemoteAddr(), "error", err)
		}
	})
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- srv.ActivateAndServe() }()
	select {
	case err := <-done:
		return err
	case <-started:
	}
	s.logger.Info("dns server listens", "address", addr, "network", network)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, stopped := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer stopped()
	if err := srv.ShutdownContext(stop); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop: %w", err)
	}
	return <-done
}

// respond makes the answer to send, nil for none.
func (s *Server) respond(ctx context.Context, client netip.Addr, network string, req *dns.Msg) *dns.Msg {
	who := s.clients.of(client)
	if network == "udp" && who.limited {
		switch s.limit.take(client) {
		case drop:
			s.metrics.limited.WithLabelValues("dropped").Inc()
			return nil
		case truncate:
			s.metrics.limited.WithLabelValues("truncated").Inc()
			return askByTCP(req)
		}
	}
	// What everything there is about a name amounts to is not for who may be somebody else (RFC 8482).
	if network == "udp" && len(req.Question) == 1 && req.Question[0].Qtype == dns.TypeANY {
		return askByTCP(req)
	}
	resp := s.handle(ctx, who, req)
	s.metrics.count(who, resp)
	return fit(resp, req, network)
}

// askByTCP is no answer but the advice to ask again.
func askByTCP(req *dns.Msg) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.Truncated = true
	return edns(resp, req.IsEdns0())
}

// clientOf is the address of who asks, invalid if that cannot be read.
func clientOf(addr net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

// bind opens the socket, again and again while the address is taken by somebody
// else. It returns nil, nil when ctx ended first.
func (s *Server) bind(ctx context.Context, network string, addr netip.AddrPort, what string) (*dns.Server, error) {
	lc := net.ListenConfig{Control: Freebind}
	for told := false; ; {
		srv := &dns.Server{Net: network, UDPSize: dns.MaxMsgSize, IdleTimeout: func() time.Duration { return tcpIdle }}
		var err error
		if network == "udp" {
			srv.ReadTimeout = time.Hour // nothing is due when no packet comes
			srv.PacketConn, err = lc.ListenPacket(ctx, network, addr.String())
		} else {
			var l net.Listener
			if l, err = lc.Listen(ctx, network, addr.String()); err == nil {
				srv.Listener = netutil.LimitListener(l, maxConns)
			}
		}
		switch {
		case err == nil:
			return srv, nil
		case ctx.Err() != nil:
			return nil, nil
		case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL):
			if !told {
				s.logger.Error("dns address is taken, trying again: "+what,
					"address", addr, "network", network, "error", err, "cure", cure(err, addr))
				told = true
			}
		default:
			return nil, fmt.Errorf("%w (%s)", err, cure(err, addr))
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(rebindEvery):
		}
	}
}

// cure says what the user can do about a bind error.
func cure(err error, addr netip.AddrPort) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("see who has it with `ss -lnptu sport = :%d` and stop it or make it listen on its own address only", addr.Port())
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "run as root or give the binary CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return "this machine has no such address family; leave the address out of the configuration"
	}
	return "check that the address belongs to this machine"
}

// Freebind is the Control of a net.ListenConfig that lets a socket be bound before its
// address is on an interface.
func Freebind(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var optErr error
	if err := c.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
		return err
	}
	return os.NewSyscallError("set IP_FREEBIND", optErr)
}
