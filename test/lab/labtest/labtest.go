// Package labtest is what the tests share that run over a lab.
package labtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// Main runs a package's tests over one lab and returns its exit code. name is in the
// lab's directory; prepare is called once the lab is up. When a test has failed, the ends
// of the lab's logs follow on stderr. The lab is ended afterwards, unless ROOKERY_KEEP_LAB
// is set; with the value "failed" only a lab whose tests have failed is kept.
func Main(m *testing.M, name string, o lab.Options, prepare func(context.Context, *lab.Lab) error) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	o.Dir, o.Bin = directory(name), "../../bin"
	defer func() { end(o.Dir, code != 0) }()
	l, err := lab.Up(ctx, o, func(s string) { fmt.Println("lab:", s) })
	if err == nil {
		err = prepare(ctx, l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the lab:", err)
		lab.TailLogs(os.Stderr, o.Dir)
		return 1
	}
	if code = m.Run(); code != 0 {
		lab.TailLogs(os.Stderr, o.Dir)
	}
	return code
}

// Start makes a lab for one test, which ends it; else as [Main].
func Start(t *testing.T, name string, o lab.Options) *lab.Lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	o.Dir, o.Bin = directory(name), "../../bin"
	t.Cleanup(func() {
		if t.Failed() {
			lab.TailLogs(os.Stderr, o.Dir)
		}
		end(o.Dir, t.Failed())
	})
	l, err := lab.Up(ctx, o, func(s string) { t.Log("lab:", s) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func directory(name string) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("rookery-%s-%d", name, os.Getpid()))
}

// end ends a lab, unless it is to be kept.
func end(dir string, failed bool) {
	if keep := os.Getenv("ROOKERY_KEEP_LAB"); keep != "" && (keep != "failed" || failed) {
		fmt.Println("the lab is kept at", dir)
		return
	}
	if err := lab.Down(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, "end lab:", err)
	}
}

// Eventually polls what until it returns nil, and returns how long that took; the last
// error is what the test fails with when time is up.
func Eventually(t *testing.T, within time.Duration, what func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := what()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Run runs a command line, split at spaces, in a host and fails the test unless it succeeds.
func Run(t *testing.T, l *lab.Lab, host, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := l.Run(ctx, host, strings.Fields(line)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Shows runs a command line as Run does, a minute at most each time, until what it prints has all of these.
func Shows(t *testing.T, l *lab.Lab, within time.Duration, host, line string, want ...string) {
	t.Helper()
	Eventually(t, within, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := l.Run(ctx, host, strings.Fields(line)...)
		for _, s := range want {
			if err == nil && !strings.Contains(out, s) {
				err = fmt.Errorf("on %s, %s printed %q, want %q", host, line, out, s)
			}
		}
		return err
	})
}

// NoneLost wants no request of a `hello load` to have failed, by what it reports. Two that had no
// answer in time are a pause of this machine, which does that to whatever is under way.
func NoneLost(t *testing.T, what string, sent, failed int, errors map[string]int) {
	t.Helper()
	late := 0
	for why, n := range errors {
		if strings.Contains(why, "Client.Timeout") {
			late += n
		}
	}
	if failed > min(late, 2) {
		t.Errorf("%s: %d of %d requests failed: %v", what, failed, sent, errors)
	}
}

// FailedSoon wants requests of a `hello load` to have failed for 10 s at most after that time, but for
// two of a hundred: replacements start then, on a machine that does much else.
func FailedSoon(t *testing.T, what string, at time.Time, sent int, failedBySecond map[int64]int, errors map[string]int) {
	t.Helper()
	late := 0
	for second, n := range failedBySecond {
		if time.Unix(second, 0).Sub(at) > 10*time.Second {
			late += n
		}
	}
	if late*50 > sent {
		t.Errorf("%s: %d of %d requests failed later than 10 s after it: %v", what, late, sent, errors)
	}
}
