package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// A snapshot is: 7 bytes magic, version byte, raft index, raft term, revision
// and number of keys (8 bytes each, big endian), the keys in order (each the
// length of its record as 4 bytes, then the record of appendKV), and the CRC-32C
// of all that.
const (
	snapshotMagic   = "rookery"
	snapshotVersion = 1
	snapshotHead    = len(snapshotMagic) + 1 + 4*8
)

// errChecksum says that bytes are not those that were written.
var errChecksum = errors.New("checksum does not match")

// image is a state at a point of the log. It is immutable, so it can be written
// while the state goes on.
type image struct {
	index, term uint64 // of the last log entry in it
	revision    int64
	tree        *tree
}

func (m *image) write(w io.Writer) error {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	head := append([]byte(snapshotMagic), snapshotVersion)
	for _, v := range []uint64{m.index, m.term, uint64(m.revision), uint64(m.tree.Len())} {
		head = binary.BigEndian.AppendUint64(head, v)
	}
	_, err := buf.Write(head)
	var rec []byte
	m.tree.Root().Walk(func(_ []byte, kv *KV) bool {
		rec = appendKV(append(rec[:0], 0, 0, 0, 0), kv)
		binary.BigEndian.PutUint32(rec, uint32(len(rec)-4))
		_, err = buf.Write(rec)
		return err != nil
	})
	if err == nil {
		err = buf.Flush()
	}
	if err == nil {
		_, err = w.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// readImage reads a snapshot and returns it only when it is whole.
func readImage(r io.Reader) (*image, error) {
	s := snapshotReader{r: bufio.NewReaderSize(r, 64<<10), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	m, err := s.image()
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = errors.New("it is cut short")
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return m, nil
}

type snapshotReader struct {
	r   *bufio.Reader
	sum hash.Hash32
	buf []byte
}

func (s *snapshotReader) image() (*image, error) {
	head, err := s.next(snapshotHead)
	if err != nil {
		return nil, err
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, errMalformed
	}
	if v := head[len(snapshotMagic):]; v[0] != snapshotVersion {
		return nil, versionError("snapshot", v)
	}
	d := decoder{b: head[len(snapshotMagic)+1:]}
	m := &image{index: d.uint64(), term: d.uint64(), revision: int64(d.uint64())}
	tx := iradix.New[*KV]().Txn()
	for n := d.uint64(); n > 0; n-- {
		kv, err := s.kv()
		if err != nil {
			return nil, err
		}
		tx.Insert(bytesOf(kv.Key), kv)
	}
	want := s.sum.Sum32()
	tail, err := s.next(4)
	if err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(tail) != want {
		return nil, errChecksum
	}
	m.tree = tx.CommitOnly()
	return m, nil
}

func (s *snapshotReader) kv() (*KV, error) {
	size, err := s.next(4)
	if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size)
	if n > MaxTxnBytes+64 { // a key and value of a transaction, and five varints
		return nil, errMalformed
	}
	rec, err := s.next(int(n))
	if err != nil {
		return nil, err
	}
	d := decoder{b: rec}
	kv := &KV{Key: string(d.bytes())}
	value := d.bytes()
	kv.Value = append(make([]byte, 0, len(value)), value...)
	kv.CreateRevision, kv.ModRevision, kv.Expires = d.varint(), d.varint(), d.varint()
	return kv, d.end()
}

// next returns n bytes, valid until the next call.
func (s *snapshotReader) next(n int) ([]byte, error) {
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	b := s.buf[:n]
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil, err
	}
	s.sum.Write(b) // a hash never fails
	return b, nil
}
