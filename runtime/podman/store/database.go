package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
)

// lookAtDatabases looks at those that libpod may have: one of bbolt, or from Podman 4.8
// on one of SQLite. Only their beginnings are read, by which Podman refuses to start.
func lookAtDatabases(dir string) (torn []Torn) {
	for path, why := range map[string]func(*os.File, int64) string{
		filepath.Join(dir, "libpod", "bolt_state.db"): boltTorn,
		filepath.Join(dir, "db.sql"):                  sqliteTorn,
	} {
		f, err := os.Open(path)
		if err != nil {
			continue // it has the other one
		}
		// An empty one is made anew by Podman itself.
		if info, err := f.Stat(); err == nil && info.Size() > 0 {
			if text := why(f, info.Size()); text != "" {
				torn = append(torn, Torn{Path: path, What: "Podman's database of containers", Why: text, kind: database})
			}
		}
		f.Close()
	}
	return torn
}

// Of a bbolt file: https://pkg.go.dev/go.etcd.io/bbolt, meta pages.
const (
	boltMagic  = 0xED0CDAED
	boltHeader = 16 // of each page
	boltMeta   = 64 // magic to checksum
)

// boltTorn is why neither of the two meta pages is whole, or what the newer one says there is, is not.
func boltTorn(f *os.File, size int64) string {
	var newest, pages uint64
	found, pageSize := false, int64(os.Getpagesize())
	for page := range int64(2) {
		meta := make([]byte, boltMeta)
		if _, err := f.ReadAt(meta, page*pageSize+boltHeader); err != nil {
			continue
		}
		sum := fnv.New64a()
		sum.Write(meta[:boltMeta-8])
		if binary.NativeEndian.Uint32(meta) != boltMagic || binary.NativeEndian.Uint64(meta[56:]) != sum.Sum64() {
			continue
		}
		if tx := binary.NativeEndian.Uint64(meta[48:]); !found || tx >= newest {
			found, newest, pages = true, tx, binary.NativeEndian.Uint64(meta[40:])
			pageSize = int64(binary.NativeEndian.Uint32(meta[8:]))
		}
	}
	switch {
	case !found:
		return "it is not a database any more"
	case size < int64(pages)*pageSize:
		return fmt.Sprintf("it has %d bytes of %d", size, int64(pages)*pageSize)
	}
	return ""
}

// sqliteTorn: https://www.sqlite.org/fileformat.html, the database header.
func sqliteTorn(f *os.File, size int64) string {
	header := make([]byte, 100)
	if _, err := io.ReadFull(f, header); err != nil || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		return "it is not a database any more"
	}
	for _, pending := range []string{"-journal", "-wal"} {
		if info, err := os.Stat(f.Name() + pending); err == nil && info.Size() > 0 {
			return "" // SQLite mends it from there
		}
	}
	pageSize, pages := int64(binary.BigEndian.Uint16(header[16:])), int64(binary.BigEndian.Uint32(header[28:]))
	if pageSize == 1 {
		pageSize = 1 << 16
	}
	valid := binary.BigEndian.Uint32(header[24:]) == binary.BigEndian.Uint32(header[92:])
	if valid && size < pages*pageSize {
		return fmt.Sprintf("it has %d bytes of %d", size, pages*pageSize)
	}
	return ""
}
