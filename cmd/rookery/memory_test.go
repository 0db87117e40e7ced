package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestForgetProgram(t *testing.T) {
	before := residentFiles(t)
	if err := forgetProgram(); err != nil {
		t.Fatal(err)
	}
	after := residentFiles(t) // and so this program still runs
	if after >= before {
		t.Errorf("%d kB of files are resident, %d before", after, before)
	}
}

// residentFiles is how much of this process is mapped from files, in kB.
func residentFiles(t *testing.T) (kB int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "RssFile:")
	if !ok {
		t.Fatal("no RssFile in /proc/self/status")
	}
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		t.Fatal(err)
	}
	return kB
}
