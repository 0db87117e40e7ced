package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// SetAside gives a torn file another name, so that nothing of it is lost and Podman goes on without;
// of a list, the elements before the tear stay. It returns the new name, and tells a Podman
// that runs to read the list again. It waits until ctx ends for who writes the list.
func SetAside(ctx context.Context, t Torn, now time.Time) (to string, err error) {
	to = t.Path + ".torn-" + now.UTC().Format("20060102T150405")
	if t.kind == database {
		if err := os.Rename(t.Path, to); err != nil {
			return "", fmt.Errorf("set %s aside: %w", t.What, err)
		}
		return to, nil
	}
	unlock, err := lockList(ctx, t.lock)
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", t.What, err)
	}
	defer unlock()
	rest, err := rescue(t.Path)
	if err == nil {
		// There is a list at any time: one that is missing reads as an empty one.
		if err = os.Link(t.Path, to); err == nil {
			if err = renameio.WriteFile(t.Path, rest, 0o600); err != nil {
				err = errors.Join(err, os.Remove(to)) // the next try makes it again
			}
		}
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", t.What, err)
	}
	return to, nil
}

// rescue is a list of what can be read of a torn one.
func rescue(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, _ := decode[json.RawMessage](json.NewDecoder(f)) // how far is what is asked
	if all == nil {
		all = []json.RawMessage{}
	}
	return json.Marshal(all)
}

// writerSize is how much of a lock file says who wrote last: whoever finds another
// there than before reads the list again.
const writerSize = 64

// lockPause is between looks whether a lock is free: its holder writes one file.
const lockPause = 50 * time.Millisecond

// lockList takes the lock of a list of containers/storage, and on release leaves a new
// last writer in it.
func lockList(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := await(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() {
		writer := make([]byte, writerSize)
		if _, err := rand.Read(writer); err == nil {
			_, _ = f.WriteAt(writer, 0) // then Podman reads the list when it is started again
		}
		f.Close()
	}, nil
}

// await locks a file for writing, as soon as nobody else has it and until ctx ends. A call
// of the kernel that waits itself would not end with ctx.
func await(ctx context.Context, f *os.File) error {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another program holds it: %w", ctx.Err())
		case <-time.After(lockPause):
		}
	}
}
