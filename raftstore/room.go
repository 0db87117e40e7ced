package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
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
func (r *Replicated) room() error { return full(r.cfg.Name, r.cfg.Dir, free(r.cfg.Dir)) }

// free is how many bytes can be written under a directory.
func free(dir string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return math.MaxUint64 // the write itself will tell
	}
	return st.Bavail * uint64(st.Bsize)
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
//
// When the store closes, what could not be written never is, and Raft must neither hear
// of an error (it panics) nor believe that it was written (it may vote twice). So the
// goroutine that wanted it ends there; its deferred calls refuse what others asked for.
// Raft writes from goroutines of its own, but for its first write: see [patient.apart].
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

// apart runs what writes here on a goroutine of its own, and blocks until it has
// returned or ended in a write that was given up.
func (p *patient) apart(work func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	<-done
}

func (p *patient) write(write func() error) error {
	for told := false; ; told = true {
		err := write()
		if err == nil {
			return nil
		}
		select {
		case <-p.closing: // also where it failed because the file is closed by now
			runtime.Goexit()
		default:
		}
		// bbolt hides the cause where it makes its file longer.
		if !errors.Is(err, syscall.ENOSPC) && free(p.dir) >= reserve {
			return err
		}
		if !told {
			p.log.Error("the disk is full: this peer waits for space before it votes or leads", "dir", p.dir)
		}
		select {
		case <-p.closing:
		case <-time.After(fullPause):
		}
	}
}
