package podman

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBehind is how many files a reader may be behind. Each takes its room on the disk
// until it is read; a client that is slower than that loses the oldest.
const maxBehind = 16

// logWatch tells when a log grows, and opens each file that takes its place at once, so that
// none is lost that is replaced again before it was read.
type logWatch struct {
	path   string
	wake   chan struct{} // has something in it after a change
	events *os.File

	mu   sync.Mutex
	next []*os.File
	last os.FileInfo   // of the newest of all that were in next; nil: none was
	lost bool          // a file went unread, and nobody was told
	done chan struct{} // closed when the watching has ended
}

// watchLog begins before the log is opened. The caller closes it.
func watchLog(path string) (*logWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		events.Close()
		return nil, fmt.Errorf("watch log: %w", err)
	}
	w := &logWatch{path: path, wake: make(chan struct{}, 1), events: events, done: make(chan struct{})}
	go w.run()
	return w, nil
}

func (w *logWatch) close() {
	w.events.Close()
	<-w.done
	for _, f := range w.next {
		f.Close()
	}
}

func (w *logWatch) run() {
	defer close(w.done)
	name := filepath.Base(w.path)
	buf := make([]byte, 4096)
	for {
		n, err := w.events.Read(buf)
		if err != nil {
			return // closed
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			at += unix.SizeofInotifyEvent
			changed := strings.TrimRight(string(buf[at:at+int(e.Len)]), "\x00")
			at += int(e.Len)
			switch overflow := e.Mask&unix.IN_Q_OVERFLOW != 0; {
			case overflow, e.Mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 && changed == name:
				w.replaced(!overflow)
			}
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// replaced opens the file that is there now. another: it took the place of the former one, so
// if it was seen already, the one that this is about came and went between.
func (w *logWatch) replaced(another bool) {
	file, err := os.Open(w.path)
	if err != nil {
		return // replaced again or removed: the next event tells
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last != nil && os.SameFile(w.last, info) {
		w.lost = w.lost || another
		file.Close()
		return
	}
	w.next, w.last = append(w.next, file), info
	if len(w.next) > maxBehind {
		w.next[0].Close()
		w.next, w.lost = w.next[1:], true
	}
}

// take returns the oldest file that took the log's place and was not taken, nil if there
// is none, and whether there were others before it that could not be kept.
func (w *logWatch) take() (next *os.File, lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.next) > 0 {
		next, w.next = w.next[0], w.next[1:]
	}
	lost, w.lost = w.lost, false
	return next, lost
}

// same: both are the one file.
func same(a, b *os.File) (bool, error) {
	if a == nil || b == nil {
		return false, nil
	}
	x, errX := a.Stat()
	y, errY := b.Stat()
	if err := errors.Join(errX, errY); err != nil {
		return false, fmt.Errorf("open log: %w", err)
	}
	return os.SameFile(x, y), nil
}
