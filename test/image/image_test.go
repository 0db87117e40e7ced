package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestWriteIsDeterministic(t *testing.T) {
	files := []File{{Path: "/bin/hello", Mode: 0o755, Data: []byte("program")}, {Path: "/etc/motd", Data: []byte("hi")}, {Path: "/tmp", Dir: true, Mode: 0o1777}}
	spec := Spec{Names: []string{"localhost/hello:1"}, Entrypoint: []string{"/bin/hello"}, Files: files, Labels: map[string]string{"b": "2", "a": "1"}}
	var first, second bytes.Buffer
	if err := Write(&first, spec); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(spec.Files)
	if err := Write(&second, spec); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files in another order gave another archive")
	}
}

func TestLayerHasParentsBeforeFiles(t *testing.T) {
	data, err := layer([]File{{Path: "/a/b/c", Data: []byte("x")}, {Path: "/a/link", Link: "b/c"}, {Path: "/a-b", Data: nil}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name)
	}
	if want := "a/ a-b a/b/ a/b/c a/link"; strings.Join(got, " ") != want {
		t.Errorf("layer holds %q, want %q", got, want)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, spec := range map[string]Spec{
		"no name":       {},
		"relative path": {Names: []string{"a"}, Files: []File{{Path: "bin/a"}}},
		"unclean path":  {Names: []string{"a"}, Files: []File{{Path: "/bin/../a"}}},
	} {
		if err := Write(io.Discard, spec); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
