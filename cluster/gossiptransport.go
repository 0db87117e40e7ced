package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/rundigitalplatform/rookery/cluster/reverse"
)

// acceptAgain is the pause after a connection could not be taken: the process has
// too many files, which a loop would not cure.
const acceptAgain = 100 * time.Millisecond

// receiveBuffer is for bursts of packets, in bytes, as in memberlist's own transport. The
// kernel gives no more than net.core.rmem_max, and says nothing.
const receiveBuffer = 2 << 20

// transport is memberlist's way to the network: UDP and TCP on one port, and to peers that
// cannot be dialled the connections that they keep. Memberlist's own makes a buffer of
// 64 kB for every packet, which is three quarters of the garbage of an idle peer; this one
// reads into one buffer and hands on copies.
type transport struct {
	udp     *net.UDPConn
	tcp     *net.TCPListener
	links   links // nil: none
	log     *slog.Logger
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// links are the connections that peers keep; [Port].
type links interface {
	Linked(name string) bool
	SendLinked(name string, packet []byte) bool
	DialLinked(ctx context.Context, name string, kind reverse.Kind) (net.Conn, error)
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// newTransport listens; the caller shuts it down.
func newTransport(bind netip.AddrPort, links links, log *slog.Logger) (*transport, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(bind))
	if err != nil {
		return nil, fmt.Errorf("listen for gossip: %w", err)
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bind))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for gossip: %w", err), tcp.Close())
	}
	t := &transport{
		udp: udp, tcp: tcp, links: links, log: log,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), closed: make(chan struct{}),
	}
	if err := enlarge(udp); err != nil {
		log.Warn("gossip has a small receive buffer; packets may be lost in a burst", "error", err)
	}
	t.wg.Go(t.receive)
	t.wg.Go(t.accept)
	return t, nil
}

// enlarge asks for less each time until the kernel accepts.
func enlarge(c *net.UDPConn) (err error) {
	for size := receiveBuffer; size > 0; size /= 2 {
		if err = c.SetReadBuffer(size); err == nil {
			return nil
		}
	}
	return err
}

func (t *transport) receive() {
	buf := make([]byte, reverse.LargestPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			t.log.Warn("gossip packet could not be read", "error", err)
			continue
		case n == 0:
			continue
		}
		t.packet(slices.Clone(buf[:n]), net.UDPAddrFromAddrPort(from))
	}
}

// packet hands on one that came.
func (t *transport) packet(b []byte, from net.Addr) {
	select {
	case t.packets <- &memberlist.Packet{Buf: b, From: from, Timestamp: time.Now()}:
	case <-t.closed:
	}
}

// stream hands on a connection that was made to here.
func (t *transport) stream(conn net.Conn) {
	select {
	case t.streams <- conn:
	case <-t.closed:
		conn.Close()
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.log.Warn("gossip connection could not be taken", "error", err)
			select {
			case <-time.After(acceptAgain):
			case <-t.closed:
				return
			}
			continue
		}
		t.stream(conn)
	}
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// FinalAdvertiseAddr takes what it is given: it is always set.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, fmt.Errorf("address for gossip: %w", err)
	}
	return addr.Unmap().AsSlice(), port, nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip to %s: %w", addr, err)
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteToAddress does as WriteTo, unless the peer keeps a connection: its address may be nobody's, or
// another machine's.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if t.links != nil && to.Name != "" && t.links.SendLinked(to.Name, b) {
		return time.Now(), nil
	}
	return t.WriteTo(b, to.Addr)
}

// DialAddressTimeout keeps to the timeout whatever state a kept connection is in, as do writes to what it
// returns: gossip probes one peer after the other.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if t.links == nil || to.Name == "" || !t.links.Linked(to.Name) {
		return t.DialTimeout(to.Addr, timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := t.links.DialLinked(ctx, to.Name, reverse.Gossip)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	var d net.Dialer // the connection ends, or is needed no more
	return d.DialContext(ctx, "tcp", to.Addr)
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}

// Shutdown returns when nothing listens any more. Idempotent.
func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() {
		close(t.closed)
		err = errors.Join(t.udp.Close(), t.tcp.Close())
	})
	t.wg.Wait()
	return err
}
