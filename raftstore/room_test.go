package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// crowded is a stable store on a disk that has no space while full says so.
type crowded struct {
	raft.StableStore
	full  atomic.Pointer[error] // what a write ends with; nil: there is space
	tried chan struct{}         // gets a word at each write that failed, if anybody listens
}

func newCrowded() *crowded {
	return &crowded{StableStore: raft.NewInmemStore(), tried: make(chan struct{}, 1)}
}

func (c *crowded) SetUint64(key []byte, value uint64) error {
	if err := c.full.Load(); err != nil {
		select {
		case c.tried <- struct{}{}:
		default:
		}
		return *err
	}
	return c.StableStore.SetUint64(key, value)
}

func (c *crowded) patient(closing chan struct{}, dir string) *patient {
	return &patient{c, closing, slog.New(slog.DiscardHandler), dir}
}

var errNoSpace error = &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}

func TestVotesWaitForSpace(t *testing.T) {
	hidden := fmt.Errorf("file resize error: %s", syscall.ENOSPC) // as bbolt says it
	for _, tt := range []struct {
		dir string
		err error
	}{{t.TempDir(), errNoSpace}, {"/proc", hidden}} { // statfs says that /proc has no space
		synctest.Test(t, func(t *testing.T) {
			disk := newCrowded()
			disk.full.Store(&tt.err)
			time.AfterFunc(time.Minute, func() { disk.full.Store(nil) })
			began := time.Now()
			p := disk.patient(make(chan struct{}), tt.dir)
			if err := p.SetUint64([]byte("term"), 7); err != nil {
				t.Error(err)
			}
			if term, err := disk.GetUint64([]byte("term")); err != nil || term != 7 {
				t.Error(term, err)
			}
			if took := time.Since(began); took < time.Minute || took > time.Minute+2*fullPause {
				t.Errorf("waited for %s", took)
			}
		})
	}
	disk, broken := newCrowded(), error(syscall.EIO)
	disk.full.Store(&broken)
	if err := disk.patient(make(chan struct{}), t.TempDir()).SetUint64([]byte("term"), 7); !errors.Is(err, syscall.EIO) {
		t.Errorf("a broken disk: %v", err)
	}
}

// TestStopOnAFullDisk: Raft ends without a panic, also when it has only begun, and
// keeps nothing that is not on the disk.
func TestStopOnAFullDisk(t *testing.T) {
	for _, from := range []string{"a start", "an election"} {
		t.Run(from, func(t *testing.T) {
			disk, closing := newCrowded(), make(chan struct{})
			p := disk.patient(closing, t.TempDir())
			cfg := raft.DefaultConfig()
			cfg.LocalID, cfg.Logger = "a", &raftLogger{log: slog.New(slog.DiscardHandler)}
			address, trans := raft.NewInmemTransport("")
			log, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
			first := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: address}}}
			if err := raft.BootstrapCluster(cfg, log, disk.StableStore, snaps, trans, first); err != nil {
				t.Fatal(err)
			}
			start := func() (rf *raft.Raft, err error) {
				p.apart(func() { rf, err = raft.NewRaft(cfg, &raft.MockFSM{}, log, p, snaps, trans) })
				return rf, err
			}
			if from == "a start" {
				disk.full.Store(&errNoSpace)
				go func() {
					<-disk.tried
					close(closing)
				}()
				if rf, err := start(); rf != nil || err != nil {
					t.Errorf("%v, %v", rf, err)
				}
				return
			}
			rf, err := start()
			if err != nil {
				t.Fatal(err)
			}
			disk.full.Store(&errNoSpace)
			<-disk.tried // it wants to vote for itself
			close(closing)
			if err := rf.Shutdown().Error(); err != nil {
				t.Error(err)
			}
			if term, err := disk.GetUint64([]byte("CurrentTerm")); err != nil || term != 1 {
				t.Errorf("term %d, %v", term, err)
			}
		})
	}
}

func TestFull(t *testing.T) {
	if err := full("h1", "/data", reserve); err != nil {
		t.Error(err)
	}
	err := full("h1", "/data", reserve-1)
	want := "no space left on device: peer h1 leads and has 15 MB free under /data, of which the cluster's state keeps 16 for itself; free some space there"
	if !errors.Is(err, ErrDiskFull) || err.Error() != want {
		t.Errorf("error is %v", err)
	}
	if remote := (reply{code: replyDiskFull, text: err.Error()}).outcome(); !errors.Is(remote, ErrDiskFull) || remote.Error() != want {
		t.Errorf("over the wire it is %v", remote)
	}
}
