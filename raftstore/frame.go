package raftstore

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// The store protocol: both ends send frames of a length (4 bytes, big endian)
// and a body. A body is a type byte, the request's number (8 bytes), and:
//
//	txn        term as uvarint, proposal id (16 bytes), operations
//	readIndex  nothing
//	reply      code byte, index (8 bytes), text
//
// A connection begins with the greeting from the one who dialled. Replies come
// in any order.
const (
	storeGreeting = "rookery-store/1\n"

	frameTxn       byte = 1
	frameReadIndex byte = 2
	frameReply     byte = 3

	frameHead = 1 + 8
	// maxFrame: the largest transaction, with 64 bytes of overhead for each operation.
	maxFrame = MaxTxnBytes + maxOps*64
)

const (
	replyOK          byte = 0
	replyNotProposed byte = 1
	replyUncertain   byte = 2
	replyMalformed   byte = 3
	replyDiskFull    byte = 4 // with text; a peer that does not know it takes it for a failure
)

const (
	// bodyTimeout is how long a frame that has begun may take to arrive or to be sent.
	bodyTimeout = 5 * time.Second
	// framesInFlight bounds the requests of one connection that are not answered.
	framesInFlight = 1024
)

// newFrame begins a frame; sealFrame ends it.
func newFrame(kind byte, number uint64, size int) []byte {
	b := make([]byte, 4, 4+frameHead+size)
	return binary.BigEndian.AppendUint64(append(b, kind), number)
}

func sealFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func txnFrame(number, term uint64, p proposal) []byte {
	b := newFrame(frameTxn, number, proposalBytes(p.ops)+binary.MaxVarintLen64)
	b = binary.AppendUvarint(b, term)
	b = binary.BigEndian.AppendUint64(b, p.id.session)
	b = binary.BigEndian.AppendUint64(b, p.id.seq)
	return sealFrame(appendOps(b, p.ops))
}

func replyFrame(number uint64, code byte, index uint64, text string) []byte {
	b := newFrame(frameReply, number, 1+8+len(text))
	b = binary.BigEndian.AppendUint64(append(b, code), index)
	return sealFrame(append(b, text...))
}

// readFrame returns the next body. It waits for ever for one to begin.
func readFrame(conn net.Conn, r *bufio.Reader) (kind byte, number uint64, d decoder, err error) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, 0, decoder{}, err
	}
	head, err := r.Peek(4)
	if err != nil {
		return 0, 0, decoder{}, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < frameHead || n > maxFrame {
		return 0, 0, decoder{}, fmt.Errorf("frame of %d bytes: %w", n, errMalformed)
	}
	if err := conn.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return 0, 0, decoder{}, err
	}
	body := make([]byte, 4+int(n))
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, 0, decoder{}, err
	}
	d = decoder{b: body[4:]}
	return d.uint8(), d.uint64(), d, nil
}

// writeFrames sends what comes from out until done is closed or sending fails.
// What is ready goes out together; taken is called for each frame.
func writeFrames(conn net.Conn, out <-chan []byte, done <-chan struct{}, taken func()) error {
	w := bufio.NewWriterSize(conn, 32<<10)
	for {
		select {
		case b := <-out:
			taken()
			if err := conn.SetWriteDeadline(time.Now().Add(bodyTimeout)); err != nil {
				return err
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			if len(out) == 0 {
				if err := w.Flush(); err != nil {
					return err
				}
			}
		case <-done:
			return nil
		}
	}
}
