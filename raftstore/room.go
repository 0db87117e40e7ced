package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// ErrDiskFull says that the leader has no room for a transaction: it surely did not
// happen. Nothing is lost, and writes are taken again as soon as there is space.
var ErrDiskFull = errors.New("no space left on device")

// reserve stays free under the log of a leader: what Raft writes for itself, as for an
// election, must still fit, or the leader would step down with every write.
const reserve = 16 << 20

// fullError is an ErrDiskFull that says where.
type fullError struct{ text string }

func (e *fullError) Error() string { return e.text }

func (e *fullError) Is(target error) bool { return target == ErrDiskFull }

// room is nil while there is space for more under the log.
func (r *Replicated) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.cfg.Dir, &st); err != nil {
		return nil // the write itself will tell
	}
	return full(r.cfg.Name, r.cfg.Dir, st.Bavail*uint64(st.Bsize))
}

func full(peer, dir string, free uint64) error {
	if free >= reserve {
		return nil
	}
	return &fullError{fmt.Sprintf("%v: peer %s leads and has %d MB free under %s, of which the cluster's state keeps %d for itself; free some space there",
		ErrDiskFull, peer, free>>20, dir, reserve>>20)}
}

// patient is a stable store that waits for space: Raft panics where its term or vote
// cannot be written. A peer that waits takes part in nothing, which is what a full disk
// leaves it; a majority goes on without it.
type patient struct {
	raft.StableStore
	closing <-chan struct{}
	log     *slog.Logger
	dir     string
}

// fullPause is between tries to write on a full disk.
const fullPause = time.Second

// Set implements raft.StableStore.
func (p *patient) Set(key, value []byte) error {
	return p.write(func() error { return p.StableStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (p *patient) SetUint64(key []byte, value uint64) error {
	return p.write(func() error { return p.StableStore.SetUint64(key, value) })
}

func (p *patient) write(write func() error) error {
	for told := false; ; told = true {
		err := write()
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		if !told {
			p.log.Error("the disk is full: this peer waits for space before it votes or leads", "dir", p.dir)
		}
		select {
		case <-p.closing:
			return err
		case <-time.After(fullPause):
		}
	}
}
