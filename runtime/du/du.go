// Package du measures what directories take on disk, as du(1) does: blocks, not lengths,
// a file with several names once, and nothing of what is mounted below. The runtime and
// the node agent call it, and bound how often.
package du

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Of measures a directory or file. What goes away meanwhile does not count; one that is
// not there is empty. It returns when ctx ends, with the error of that.
func Of(ctx context.Context, path string) (runtime.Space, error) {
	var out runtime.Space
	var device uint64
	type file struct{ device, inode uint64 }
	links := map[file]bool{}
	err := filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat %s: %w", at, os.ErrInvalid)
		}
		if at == path {
			device = uint64(st.Dev)
		} else if uint64(st.Dev) != device {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !entry.IsDir() {
			name := file{uint64(st.Dev), st.Ino}
			if links[name] {
				return nil
			}
			links[name] = true
		}
		out.Bytes += st.Blocks * 512 // whatever the file system's own block is, stat(2)
		out.Inodes++
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("measure %s: %w", path, err)
	}
	return out, nil
}
