package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// `make up` on a machine with nothing but Podman ends with the sample answering;
// a second run changes nothing; `make down` takes it away.
func TestMakeUp(t *testing.T) {
	l, _ := blank(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	script := "cd ../.. && PREFIX=" + l.HostDir("h1") + "/usr configs/samples/"
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	first, err := l.Run(ctx, "h1", "sh", "-c", "cd "+wd+" && "+script+"up.sh")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(first, "Hello from pod hello-") != 2 || !strings.Contains(first, "What to try next") {
		t.Errorf("make up printed:\n%s", first)
	}
	state := func() string {
		out, err := l.Run(ctx, "h1", "rookery", "-n", "hello", "get", "all,configmaps,secrets", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := state()
	second, err := l.Run(ctx, "h1", "sh", "-c", "cd "+wd+" && "+script+"up.sh")
	if err != nil {
		t.Fatal(err)
	}
	if after := state(); after != before || strings.Contains(second, "configured") {
		t.Errorf("the second run changed something:\n%s\nbefore:\n%s\nafter:\n%s", second, before, after)
	}
	if out, err := l.Run(ctx, "h1", "sh", "-c", "cd "+wd+" && "+script+"down.sh"); err != nil {
		t.Errorf("make down: %v %s", err, out)
	}
}
