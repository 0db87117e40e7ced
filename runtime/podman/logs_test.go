package podman

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

const sampleLog = `2024-01-01T00:00:01.000000001+00:00 stdout F one
2024-01-01T00:00:02.000000002+00:00 stderr F two
2024-01-01T00:00:03.000000003+00:00 stdout P thr
2024-01-01T00:00:04.000000004+00:00 stderr F four
2024-01-01T00:00:05.000000005+00:00 stdout F ee
2024-01-01T00:00:06.000000006+00:00 stdout F 
not a log line
2024-01-01T00:00:07.000000007+00:00 stdout F last  word
`

func TestLogReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ctr.log")
	if err := os.WriteFile(path, []byte(sampleLog), 0o600); err != nil {
		t.Fatal(err)
	}
	tail := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name           string
		opts           runtime.LogOptions
		stdout, stderr string
	}{
		{"all", runtime.LogOptions{}, "one\nthree\n\nlast  word\n", "two\nfour\n"},
		{"no tail", runtime.LogOptions{Tail: tail(0)}, "", ""},
		{"tail of one", runtime.LogOptions{Tail: tail(1)}, "last  word\n", ""},
		{"tail of two", runtime.LogOptions{Tail: tail(2)}, "\nlast  word\n", ""},
		{"tail inside a long line", runtime.LogOptions{Tail: tail(4)}, "three\n\nlast  word\n", "four\n"},
		{"long tail", runtime.LogOptions{Tail: tail(100)}, "one\nthree\n\nlast  word\n", "two\nfour\n"},
		{"since", runtime.LogOptions{Since: time.Date(2024, 1, 1, 0, 0, 6, 0, time.UTC)}, "\nlast  word\n", ""},
		{"timestamps", runtime.LogOptions{Timestamps: true, Tail: tail(4)},
			"2024-01-01T00:00:03.000000003Z three\n2024-01-01T00:00:06.000000006Z \n2024-01-01T00:00:07.000000007Z last  word\n", "2024-01-01T00:00:04.000000004Z four\n"},
	} {
		var stdout, stderr bytes.Buffer
		l := &logReader{path: path, opts: c.opts, stdout: &stdout, stderr: &stderr}
		if err := l.open(); err != nil {
			t.Fatal(err)
		}
		if c.opts.Tail != nil {
			if err := l.seekTail(*c.opts.Tail); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.read(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.close()
		if stdout.String() != c.stdout || stderr.String() != c.stderr {
			t.Errorf("%s: stdout %q, stderr %q", c.name, stdout.String(), stderr.String())
		}
	}
}

// TestLogReaderRotation goes on where conmon replaced the file.
func TestLogReaderRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ctr.log")
	var out bytes.Buffer
	l := &logReader{path: path, stdout: &out, stderr: &out}
	defer func() { l.close() }()
	step := func(write func() error, want string) {
		t.Helper()
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if err := l.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("read %q, want %q", out.String(), want)
		}
	}
	const stamp = "2024-01-01T00:00:01.0+00:00 stdout F "
	step(func() error { return nil }, "")
	step(func() error { return os.WriteFile(path, []byte(stamp+"one\n"+stamp+"tw"), 0o600) }, "one\n")
	step(func() error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString("o\n")
		return err
	}, "one\ntwo\n")
	step(func() error {
		if err := os.WriteFile(path+".new", []byte(stamp+"three\n"), 0o600); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}, "one\ntwo\nthree\n")
}

func TestDemultiplex(t *testing.T) {
	frame := func(stream byte, text string) []byte {
		header := []byte{stream, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(header[4:], uint32(len(text)))
		return append(header, text...)
	}
	var in, stdout, stderr bytes.Buffer
	for _, f := range [][]byte{frame(1, "a"), frame(2, "b"), frame(1, ""), frame(0, "c")} {
		in.Write(f)
	}
	if err := demultiplex(&in, &stdout, &stderr); err != nil || stdout.String() != "ac" || stderr.String() != "b" {
		t.Errorf("%q, %q, %v", stdout.String(), stderr.String(), err)
	}
	in.Write(frame(3, "broken"))
	if err := demultiplex(&in, &stdout, &stderr); err == nil {
		t.Error("an error frame is no error")
	}
}

func TestNotStarted(t *testing.T) {
	const missing = "Error: runc: exec failed: exec: \"/nope\": no such file or directory: OCI runtime attempted to invoke a command that was not found\n"
	for _, c := range []struct {
		code int
		said string
		want bool
	}{{127, missing, true}, {126, "Error: runc: permission denied: OCI permission denied\n", true}, {127, "sh: nope: not found\n", false}, {0, missing, false}, {127, "Error: mine\n", false}} {
		if err := notStarted(c.code, []byte(c.said)); (err != nil) != c.want {
			t.Errorf("%d %q: %v", c.code, c.said, err)
		}
	}
}
