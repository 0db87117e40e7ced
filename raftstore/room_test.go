package raftstore

import (
	"errors"
	"io/fs"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// crowded is a stable store on a disk that has space only from some time on.
type crowded struct {
	raft.StableStore
	until time.Time
	got   map[string]uint64
}

func (c *crowded) SetUint64(key []byte, value uint64) error {
	if time.Now().Before(c.until) {
		return &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	}
	c.got[string(key)] = value
	return nil
}

func TestVotesWaitForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &crowded{until: time.Now().Add(time.Minute), got: map[string]uint64{}}
		closing := make(chan struct{})
		p := &patient{disk, closing, slog.New(slog.DiscardHandler), "/data"}
		began := time.Now()
		if err := p.SetUint64([]byte("term"), 7); err != nil || disk.got["term"] != 7 {
			t.Errorf("%v, %v", err, disk.got)
		}
		if took := time.Since(began); took < time.Minute || took > time.Minute+2*fullPause {
			t.Errorf("waited for %s", took)
		}
		disk.until = time.Now().Add(time.Hour)
		time.AfterFunc(time.Second, func() { close(closing) })
		if err := p.SetUint64([]byte("term"), 8); !errors.Is(err, syscall.ENOSPC) || disk.got["term"] != 7 {
			t.Errorf("a store that ends: %v, %v", err, disk.got)
		}
	})
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
