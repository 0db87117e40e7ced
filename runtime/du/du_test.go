package du

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
)

func TestOf(t *testing.T) {
	dir := t.TempDir()
	empty, err := Of(t.Context(), dir)
	if err != nil || empty.Inodes != 1 {
		t.Fatalf("an empty directory: %+v %v", empty, err)
	}
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i)
	}
	for _, name := range []string{"a/b/one", "a/two"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil { // so that its blocks are there
			t.Fatal(err)
		}
	}
	if err := os.Link(dir+"/a/two", dir+"/a/again"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", dir+"/elsewhere"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/sparse", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/sparse", 1<<30); err != nil {
		t.Fatal(err)
	}
	check := func(what string, inodes int64) {
		t.Helper()
		have, err := Of(t.Context(), dir)
		// Directories may take a block each.
		if err != nil || have.Inodes != inodes || have.Bytes < 2<<20 || have.Bytes > 2<<20+64<<10 {
			t.Errorf("%s: %+v %v", what, have, err)
		}
	}
	check("two files, a link, a symbolic link, a sparse file", 7) // with three directories
	if os.Getuid() == 0 {
		if err := os.Mkdir(dir+"/mounted", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir+"/mounted", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Unmount(dir+"/mounted", 0); err != nil {
				t.Error(err)
			}
		}()
		if err := os.WriteFile(dir+"/mounted/file", data, 0o644); err != nil {
			t.Fatal(err)
		}
		check("what is mounted below", 7)
	}
	if have, err := Of(t.Context(), dir+"/none"); err != nil || have != (runtime.Space{}) {
		t.Errorf("what is not there: %+v %v", have, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Of(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended: %v", err)
	}
}
