package pathmtu

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// waits are how long an answer is waited for before the packet is sent again, and at
// last given up: 1.75 s are enough for a satellite, and for two losses elsewhere.
var waits = [...]time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// headers of the packets; no IP options are sent.
const (
	ip4Header  = 20
	ip6Header  = 40
	icmpHeader = 8
)

// echo sends echo requests to one address, and hears of its answers alone. Whoever has not
// seen the requests does not know the nonce that an answer has to bring back.
type echo struct {
	to       netip.Addr
	file     *os.File // of the socket
	raw      syscall.RawConn
	id       uint16
	nonce    [16]byte
	buf, oob []byte
}

// openEcho makes a raw socket whose packets are not fragmented, whatever the kernel
// believes of the path, and which is told what routers say of them.
func openEcho(from, to netip.Addr) (*echo, error) {
	if from.Is4() != to.Is4() {
		return nil, fmt.Errorf("%s and %s are of different IP families", from, to)
	}
	fd, err := rawSocket(to, ipv4.ICMPTypeEchoReply, ipv6.ICMPTypeEchoReply)
	if err != nil {
		return nil, err
	}
	e := &echo{to: to, file: os.NewFile(uintptr(fd), "icmp"), buf: make([]byte, 1<<16), oob: make([]byte, 512)}
	id := make([]byte, 2)
	rand.Read(id)
	rand.Read(e.nonce[:])
	e.id = binary.BigEndian.Uint16(id)
	for _, step := range []func() error{
		func() error { return options(fd, to) },
		func() error { return unix.Bind(fd, sockaddr(from)) },
		func() error { return unix.Connect(fd, sockaddr(to)) },
		func() (err error) { e.raw, err = e.file.SyscallConn(); return err },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(fmt.Errorf("set up raw socket from %s to %s: %w", from, to, err), e.close())
		}
	}
	return e, nil
}

func options(fd int, like netip.Addr) error {
	if like.Is4() {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
		)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1),
	)
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func (e *echo) close() error { return e.file.Close() }

func (e *echo) header() int {
	if e.to.Is4() {
		return ip4Header
	}
	return ip6Header
}

// packet is an echo request that is size bytes with its IP header.
func (e *echo) packet(size int) []byte {
	data := make([]byte, max(size-e.header()-icmpHeader, len(e.nonce)))
	copy(data, e.nonce[:])
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.id), Seq: size, Data: data}}
	if e.to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	p, _ := m.Marshal(nil) // fails for other types only; the checksum of IPv6 is the kernel's
	return p
}

// round is what is known of the sizes that were asked for at once.
type round struct {
	answer
	refused map[int]bool // a router, or this machine, has said that they are too large
}

// over tells whether nothing larger can be heard of any more.
func (r *round) over(sizes []int) bool {
	return !slices.ContainsFunc(sizes, func(size int) bool { return size > r.largest && !r.refused[size] })
}

// ask sends a packet of each size, again where nothing is heard of it, and returns when
// all is known or too much time has passed.
func (e *echo) ask(ctx context.Context, sizes []int) (answer, error) {
	r := &round{refused: map[int]bool{}}
	for _, wait := range waits {
		if err := e.raw.Control(func(fd uintptr) { e.send(int(fd), sizes, r) }); err != nil {
			return answer{}, err
		}
		if err := e.file.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return answer{}, err
		}
		stop := context.AfterFunc(ctx, func() { _ = e.file.SetReadDeadline(time.Unix(1, 0)) }) // fails only on a closed one, which waits for nothing
		err := e.raw.Read(func(fd uintptr) bool { e.drain(int(fd), sizes, r); return r.over(sizes) })
		stop()
		if ctx.Err() != nil {
			return answer{}, context.Cause(ctx)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// On a busy machine there may be answers that nobody has come to read.
			err = e.raw.Control(func(fd uintptr) { e.drain(int(fd), sizes, r) })
		}
		if err != nil {
			return answer{}, fmt.Errorf("receive: %w", err)
		}
		if r.over(sizes) {
			break
		}
	}
	return r.answer, nil
}

// send sends those that nothing was heard of. What fails is as good as lost; that this machine
// finds one too large is told by the error queue too.
func (e *echo) send(fd int, sizes []int, r *round) {
	for _, size := range sizes {
		if size > r.largest && !r.refused[size] {
			forget(fd)
			_, _ = unix.Write(fd, e.packet(size))
		}
	}
}

// forget takes back the error of an earlier packet, which would be told instead of sending
// the next; the error queue has it as well.
func forget(fd int) { _, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) }

// burst is more than all that can be heard of one round; the rest is somebody's flood.
const burst = 1024

// drain notes all that has come, without waiting.
func (e *echo) drain(fd int, sizes []int, r *round) {
	forget(fd)
	for range burst {
		n, oobn, _, _, err := unix.Recvmsg(fd, e.buf, e.oob, unix.MSG_ERRQUEUE)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			break
		}
		e.tooLarge(e.buf[:n], e.oob[:oobn], sizes, r)
	}
	for range burst {
		n, _, err := unix.Recvfrom(fd, e.buf, 0)
		switch {
		case err == nil:
			if size := e.answered(e.buf[:n]); slices.Contains(sizes, size) {
				r.largest = max(r.largest, size)
			}
		case errors.Is(err, unix.EAGAIN):
			return
		}
		// Another error is that of one packet, and was told once.
	}
}

// answered is the size of the packet that p answers as a whole; 0 if it is no answer.
func (e *echo) answered(p []byte) int {
	size := len(p)
	if e.to.Is4() { // with its header
		if size < ip4Header || size < int(p[0]&0xf)*4 {
			return 0
		}
		p = p[int(p[0]&0xf)*4:]
	} else {
		size += ip6Header
	}
	if want := e.packet(size); len(p) < icmpHeader+len(e.nonce) || len(p) != len(want) || !bytes.Equal(p[4:], want[4:]) {
		return 0
	}
	return size
}

// tooLarge notes an entry of the error queue: what a packet of ours was too large for, by this
// machine's word, or by that of a router which quotes it.
func (e *echo) tooLarge(quoted, oob []byte, sizes []int, r *round) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < 16 || binary.NativeEndian.Uint32(m.Data) != uint32(unix.EMSGSIZE) {
			continue
		}
		carries := int(min(binary.NativeEndian.Uint32(m.Data[8:]), 1<<16))
		switch origin := m.Data[4]; {
		case origin == unix.SO_EE_ORIGIN_LOCAL:
			for _, size := range sizes {
				if size > carries {
					r.refused[size] = true
				}
			}
		case e.ours(quoted):
			r.refused[int(binary.BigEndian.Uint16(quoted[6:]))] = true
		default:
			continue
		}
		r.hint = carries
	}
}

// ours tells whether a packet of ours is quoted: its beginning, with 8 bytes at least in
// IPv4 (RFC 792), where the checksum over the nonce is among them, and as a whole, but for
// what IPv6 does not carry, in IPv6 (RFC 4443).
func (e *echo) ours(quoted []byte) bool {
	least := icmpHeader
	if e.to.Is6() {
		least += len(e.nonce)
	}
	if len(quoted) < least {
		return false
	}
	size := int(binary.BigEndian.Uint16(quoted[6:]))
	if size < e.header()+icmpHeader+len(e.nonce) {
		return false
	}
	sent := e.packet(size)
	n := min(len(quoted), len(sent))
	if e.to.Is6() { // the kernel has filled the checksum in
		copy(sent[2:4], quoted[2:4])
	}
	return bytes.Equal(quoted[:n], sent[:n])
}
