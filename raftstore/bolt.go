package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
)

// The head of a bbolt file, go.etcd.io/bbolt/internal/common: two meta pages,
// each with this after a page header of 16 bytes: magic, version, page size,
// flags (4 bytes each), root page and sequence, free list page, high water page,
// transaction, FNV-1a of what came before (8 bytes each), in native byte order.
const (
	boltMagic      = 0xED0CDAED
	boltPageHeader = 16
	boltMetaBytes  = 64
)

// checkBolt finds a log file that is cut short. bbolt itself maps it to memory,
// and to touch a page that is not there would kill the process. A file that is
// absent or empty is a new one.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if info.Size() == 0 {
		return nil
	}
	need, err := boltSize(f)
	if err != nil {
		return &DamagedError{Path: path, Cause: err}
	}
	if info.Size() < need {
		return &DamagedError{Path: path, Cause: fmt.Errorf("it is cut short: %d bytes of %d", info.Size(), need)}
	}
	return nil
}

// boltSize is how many bytes the newest valid meta page says are in use.
func boltSize(f io.ReaderAt) (int64, error) {
	var need int64
	var newest uint64
	size := int64(os.Getpagesize())
	for _, page := range []int64{0, 1} {
		var meta [boltMetaBytes]byte
		if _, err := f.ReadAt(meta[:], page*size+boltPageHeader); err != nil {
			continue // the other page may do
		}
		h := fnv.New64a()
		h.Write(meta[:56]) // a hash never fails
		word := func(at int) uint64 { return binary.NativeEndian.Uint64(meta[at:]) }
		if binary.NativeEndian.Uint32(meta[:]) != boltMagic || word(56) != h.Sum64() {
			continue
		}
		size = int64(binary.NativeEndian.Uint32(meta[8:]))
		if txid := word(48); txid >= newest {
			newest, need = txid, int64(word(40))*size
		}
	}
	if need == 0 {
		return 0, errors.New("it has no valid meta page")
	}
	return need, nil
}
