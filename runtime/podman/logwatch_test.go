package podman

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A reader that is behind reads every file that took the log's place meanwhile, as many as are kept for it.
func TestLogWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ctr.log")
	const stamp = "2024-01-01T00:00:01.0+00:00 stdout F "
	if err := os.WriteFile(path, []byte(stamp+"0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	watch, err := watchLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.close()
	var out bytes.Buffer
	l := &logReader{path: path, stdout: &out, stderr: &out, watch: watch}
	defer func() { l.close() }()
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	queued := func() int {
		watch.mu.Lock()
		defer watch.mu.Unlock()
		return len(watch.next)
	}
	rotate := func(i, want int) {
		t.Helper()
		if err := os.WriteFile(path+".tmp", fmt.Appendf(nil, "%s%d\n", stamp, i), 0o600); err != nil {
			t.Fatal(err)
		}
		was := watch.newest()
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); queued() != want || watch.newest() == was; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d files are waiting, want %d", queued(), want)
			}
		}
	}
	for i := 1; i <= 3; i++ {
		rotate(i, i)
	}
	if err := l.goOn(t.Context()); err != nil || out.String() != "0\n1\n2\n3\n" {
		t.Errorf("read %q %v", out.String(), err)
	}
	out.Reset()
	for i := 1; i <= maxBehind+2; i++ {
		rotate(i, min(i, maxBehind))
	}
	if err := l.goOn(t.Context()); err != nil || bytes.Count(out.Bytes(), []byte("\n")) != maxBehind+1 || !bytes.HasPrefix(out.Bytes(), []byte(missingLines+"3\n")) {
		t.Errorf("read %q %v", out.String(), err)
	}
	out.Reset()
	watch.replaced(true) // of a file that was replaced by the last one before it could be opened
	if err := l.goOn(t.Context()); err != nil || out.String() != missingLines {
		t.Errorf("read %q %v", out.String(), err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(stamp + "more\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	select {
	case <-watch.wake:
	case <-time.After(10 * time.Second):
		t.Fatal("growth is not told")
	}
	if err := l.goOn(t.Context()); err != nil || !bytes.HasSuffix(out.Bytes(), []byte("\nmore\n")) {
		t.Errorf("read %q %v", out.String(), err)
	}
}

func (w *logWatch) newest() *os.File {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.next) == 0 {
		return nil
	}
	return w.next[len(w.next)-1]
}
