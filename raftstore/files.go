package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// logFile is the log and Raft's term and vote.
	logFile = "raft.db"
	// keepSnapshots: one, and the one before while it is replaced.
	keepSnapshots = 2
	// logCache is how many of the newest entries followers get without reading the disk.
	logCache = 128
	// lockWait: another process that is about to end gets this long to let go.
	lockWait = 3 * time.Second
)

// commitKey is where the newest index known to be committed is remembered, so
// that a peer which starts alone has the state it had.
var commitKey = []byte("RookeryCommit")

// files is what the store has on disk.
type files struct {
	dir   string
	db    *raftboltdb.BoltStore
	logs  raft.LogStore
	snaps *raft.FileSnapshotStore
}

func openFiles(cfg *Config) (*files, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create store directory: %w", err)
	}
	path := filepath.Join(cfg.Dir, logFile)
	if err := checkBolt(path); err != nil {
		return nil, err
	}
	db, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	logs, err := raft.NewLogCache(logCache, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, keepSnapshots, &raftLogger{log: cfg.Logger})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), db.Close())
	}
	return &files{dir: cfg.Dir, db: db, logs: logs, snaps: snaps}, nil
}

func openBolt(path string) (db *raftboltdb.BoltStore, err error) {
	defer guard(path, &err)()
	db, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: lockWait,
			// The free list is found again at a start; to write it with each
			// entry would double what an SD card takes.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another rookery uses this directory; stop it first", path)
	}
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch) {
		return nil, &DamagedError{Path: path, Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// guard turns the panics and memory faults by which bbolt answers a damaged
// file into a DamagedError. Use: defer guard(path, &err)().
func guard(path string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = &DamagedError{Path: path, Cause: fmt.Errorf("%v", p)}
		}
	}
}

func (f *files) close() error {
	if err := f.db.Close(); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// load rebuilds the state from the newest snapshot and the part of the log that
// is known to be committed. It reads all that Raft will read, and so finds damage
// before Raft does.
func (f *files) load(m *fsm) (err error) {
	path := filepath.Join(f.dir, logFile)
	snapshot, err := f.loadSnapshot(m)
	if err != nil {
		return err
	}
	defer guard(path, &err)()
	first, err := f.db.FirstIndex()
	if err != nil {
		return &DamagedError{Path: path, Cause: err}
	}
	last, err := f.db.LastIndex()
	if err != nil {
		return &DamagedError{Path: path, Cause: err}
	}
	committed, err := f.db.GetUint64(commitKey)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return &DamagedError{Path: path, Cause: err}
	}
	for i := max(1, min(first, snapshot+1)); i <= last; i++ {
		var l raft.Log
		err := f.db.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= snapshot {
			continue // what a snapshot from the leader has skipped
		}
		if err != nil {
			return &DamagedError{Path: path, Cause: fmt.Errorf("log entry %d of %d: %w", i, last, err)}
		}
		if l.Type == raft.LogCommand {
			if _, err := decodeEntry(l.Data); errors.Is(err, errChecksum) || errors.Is(err, errMalformed) {
				return &DamagedError{Path: path, Cause: fmt.Errorf("log entry %d of %d: %w", i, last, err)}
			} else if err != nil {
				return fmt.Errorf("read log entry %d: %w", i, err)
			}
		}
		if i <= committed && (l.Type == raft.LogCommand || l.Type == raft.LogConfiguration) {
			if err := m.apply(&l); err != nil {
				return fmt.Errorf("apply log entry %d: %w", i, err)
			}
		}
	}
	return nil
}

// loadSnapshot returns the index of the newest snapshot, 0 if there is none.
func (f *files) loadSnapshot(m *fsm) (uint64, error) {
	metas, err := f.snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(metas) == 0 {
		return 0, nil
	}
	path := filepath.Join(f.dir, "snapshots", metas[0].ID)
	_, r, err := f.snaps.Open(metas[0].ID)
	if err != nil {
		return 0, &DamagedError{Path: path, Cause: err}
	}
	img, err := readImage(r)
	err = errors.Join(err, r.Close())
	if err != nil {
		return 0, &DamagedError{Path: path, Cause: err}
	}
	m.load(img)
	return metas[0].Index, nil
}
