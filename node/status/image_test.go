package status

import (
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
)

func TestImageID(t *testing.T) {
	img := runtime.Image{ID: "sha256:1", Digests: []string{"reg.test/b@sha256:2", "reg.test:5000/a@sha256:2", "docker.io/library/c@sha256:2"}}
	for ref, want := range map[string]string{
		"reg.test:5000/a:1":             "reg.test:5000/a@sha256:2",
		"reg.test:5000/a":               "reg.test:5000/a@sha256:2",
		"reg.test:5000/a@sha256:2":      "reg.test:5000/a@sha256:2",
		"reg.test:5000/a:1@sha256:2":    "reg.test:5000/a@sha256:2",
		"c":                             "docker.io/library/c@sha256:2",
		"reg.test/b:latest":             "reg.test/b@sha256:2",
		"sha256:1":                      "reg.test/b@sha256:2",
		"elsewhere.test/searched/for:1": "reg.test/b@sha256:2",
	} {
		if got := imageID(ref, img); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	if got := imageID("a", runtime.Image{ID: "sha256:1"}); got != "sha256:1" {
		t.Errorf("without digests: %s", got)
	}
}
