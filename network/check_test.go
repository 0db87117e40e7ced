package network

import (
	"os"
	"testing"

	"sigs.k8s.io/knftables"
)

func TestCheckFindsWhatTheTestsNeed(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Check(t.Context(), knftables.IPv4Family, knftables.IPv6Family) {
		t.Logf("%+v", f)
		if f.Required && !f.OK {
			t.Errorf("%s: %s; %s", f.Name, f.Detail, f.Cure)
		}
		if f.OK == (f.Cure != "") {
			t.Errorf("%s: a cure is for what is not OK: %+v", f.Name, f)
		}
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("the check moved the process: %s, was %s (%v)", after, before, err)
	}
}

// needRoot fails a test that cannot run, unless the caller has asked to go without.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
		t.Skip("needs root")
	}
	t.Fatal("needs root: run as root, or set ROOKERY_SKIP_ROOT=1 to go without")
}
