// Package labtest is what the tests share that run over a lab.
package labtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
	o.Dir, o.Bin = filepath.Join(os.TempDir(), fmt.Sprintf("rookery-%s-%d", name, os.Getpid())), "../../bin"
	defer func() {
		if keep := os.Getenv("ROOKERY_KEEP_LAB"); keep != "" && (keep != "failed" || code != 0) {
			fmt.Println("the lab is kept at", o.Dir)
			return
		}
		if err := lab.Down(context.Background(), o.Dir); err != nil {
			fmt.Fprintln(os.Stderr, "end lab:", err)
		}
	}()
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
