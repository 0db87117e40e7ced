package lab

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

func TestUsageOf(t *testing.T) {
	first, err := UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	held := make([]byte, 32<<20)
	for i := range held {
		held[i] = byte(i)
	}
	var rest syscall.Rusage
	for rest.Utime.Nano()+rest.Stime.Nano() < first.CPU.Nanoseconds()+50e6 { // two ticks and more
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &rest); err != nil {
			t.Fatal(err)
		}
	}
	next, err := UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(held)
	if next.CPU <= first.CPU || next.Resident < 32<<20 || next.Anonymous < 32<<20 || next.Anonymous > next.Resident || next.Written < first.Written {
		t.Errorf("first %+v, then %+v", first, next)
	}
	if _, err := UsageOf(-1); err == nil {
		t.Error("a process that cannot be has used something")
	}
}

// TestMain is the daemon of a peer too, for TestDaemons.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "up" {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until it is closed
		return
	}
	os.Exit(m.Run())
}

func TestDaemons(t *testing.T) {
	l := &Lab{Dir: t.TempDir(), Hosts: []Host{{Name: "h1"}, {Name: "h2"}, {Name: "client"}}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	began := map[string]int{}
	for host, args := range map[string][]string{"h1": {"rookery", "up", "--data-dir", "x"}, "h2": {"other", "up"}, "client": {"rookery", "up"}} {
		if err := os.MkdirAll(l.HostDir(host), 0o755); err != nil {
			t.Fatal(err)
		}
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.StartProcess(self, args, &os.ProcAttr{Dir: l.HostDir(host), Files: []*os.File{in, nil, os.Stderr}})
		in.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			hold.Close()
			if _, err := p.Wait(); err != nil {
				t.Error(err)
			}
		})
		began[host] = p.Pid
	}
	found, err := l.Daemons()
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found["h1"] != began["h1"] {
		t.Errorf("found %v of %v in %s", found, began, filepath.Base(l.Dir))
	}
}
