package runtime

import (
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"hello":                         "localhost/hello:latest docker.io/library/hello:latest",
		"hello:1":                       "localhost/hello:1 docker.io/library/hello:1",
		"team/hello:1":                  "localhost/team/hello:1 docker.io/team/hello:1",
		"localhost/hello:1":             "localhost/hello:1",
		"localhost:5000/hello":          "localhost:5000/hello:latest",
		"docker.io/hello:1":             "docker.io/library/hello:1",
		"docker.io/library/hello:1":     "docker.io/library/hello:1",
		"docker.io/team/hello":          "docker.io/team/hello:latest",
		"index.docker.io/hello":         "docker.io/library/hello:latest",
		"quay.io/a/b/c":                 "quay.io/a/b/c:latest",
		"registry:5000/c@sha256:" + hex: "registry:5000/c@sha256:" + hex,
		"c@sha256:" + hex:               "localhost/c@sha256:" + hex + " docker.io/library/c@sha256:" + hex,
		"sha256:" + hex:                 "sha256:" + hex,
	} {
		if got := Names(in); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("Names(%q) = %q, want %q", in, got, want)
		}
	}
}

const hex = "0123456789012345678901234567890123456789012345678901234567890123"
