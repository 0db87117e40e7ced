package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// batch is a transaction for the kernel itself (nf_tables over netlink, as in Linux'
// uapi/linux/netfilter/nf_tables.h). It knows what comes and goes with endpoints; anything
// else makes it unable, and is the nft program's to write. The program lists all chains of
// the machine before it adds a rule, so that its time grows with the number of Services.
type batch struct {
	family knftables.Family
	table  string

	unable   bool
	buf      []byte
	last     int // where the last message begins
	messages uint32
	sets     uint32 // added so far
}

// batchSize bounds a transaction, in bytes: what is larger is no small change, and a socket
// does not take it.
const batchSize = 64 << 10

func newBatch(family knftables.Family, table string) *batch {
	b := &batch{family: family, table: table}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	return b
}

// attr is a netlink attribute.
type attr struct {
	kind uint16
	data []byte
}

func number(kind uint16, n uint32) attr { return attr{kind, binary.BigEndian.AppendUint32(nil, n)} }

func text(kind uint16, s string) attr { return attr{kind, append([]byte(s), 0)} }

func nested(kind uint16, attrs ...attr) attr {
	return attr{kind | unix.NLA_F_NESTED, marshal(nil, attrs)}
}

func marshal(to []byte, attrs []attr) []byte {
	for _, a := range attrs {
		to = binary.NativeEndian.AppendUint16(to, uint16(unix.SizeofNlAttr+len(a.data)))
		to = binary.NativeEndian.AppendUint16(to, a.kind)
		to = append(to, a.data...)
		for len(to)%unix.NLA_ALIGNTO != 0 {
			to = append(to, 0)
		}
	}
	return to
}

// message appends one.
func (b *batch) message(kind, flags uint16, attrs ...attr) {
	if b.unable {
		return
	}
	b.append(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, b.body(attrs...))
	if len(b.buf) > batchSize {
		b.unable = true
	}
}

// proto is the family's number in the kernel.
func (b *batch) proto() byte {
	if b.family == knftables.IPv6Family {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// body is struct nfgenmsg and the attributes, which begin with the table: that is number 1 in
// every kind of message.
func (b *batch) body(attrs ...attr) []byte {
	return marshal([]byte{b.proto(), unix.NFNETLINK_V0, 0, 0}, append([]attr{text(1, b.table)}, attrs...))
}

func (b *batch) control(kind uint16) {
	b.append(kind, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES})
}

func (b *batch) append(kind, flags uint16, body []byte) {
	b.last = len(b.buf)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(unix.SizeofNlMsghdr+len(body)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, unix.NLM_F_REQUEST|flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, b.messages)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0)
	b.buf = append(b.buf, body...)
	b.messages++
}

// refusal is an error of which it is known that nothing of the batch was done.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// send hands the transaction over: all of it is done, or nothing with a [refusal]. With
// another error it is not known which. It may be called once.
func (b *batch) send() error {
	if b.messages == 1 {
		return nil
	}
	// The kernel answers with errors, and with its consent to the last message.
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.control(unix.NFNL_MSG_BATCH_END)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return refusal{fmt.Errorf("open netlink socket: %w", err)}
	}
	// The kernel holds who closes until all processors have let go of what was replaced: 10
	// to 20 ms that nobody has to wait for. Closing a socket has no error to tell.
	defer func() { go unix.Close(fd) }()
	if err := unix.Sendto(fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return refusal{fmt.Errorf("send to nf_tables: %w", err)} // the kernel takes it whole or not
	}
	return answers(fd)
}

// answers reads what a batch came to: each answer is a datagram with one message. The kernel has
// worked the batch off when it has taken it, so that there is nothing to wait for.
func answers(fd int) error {
	var buf [unix.SizeofNlMsghdr + 4]byte // up to the code; what a refused message was is known
	consent := false
	for {
		n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN) && consent:
			return nil
		case errors.Is(err, unix.EAGAIN):
			return errors.New("nf_tables has not answered")
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read answer of nf_tables: %w", err)
		case n < len(buf) || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR:
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
			return refusal{fmt.Errorf("nf_tables refuses message %d: %w", binary.NativeEndian.Uint32(buf[8:]), unix.Errno(-code))}
		}
		consent = true
	}
}
