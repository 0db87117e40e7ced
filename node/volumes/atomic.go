package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// file is one file of a payload; its path is the key, relative, with slashes.
type file struct {
	data []byte
	mode os.FileMode
	uid  int // -1: leave
}

// writeAtomic replaces the contents of dir by payload in one step, in the layout
// that Kubernetes programs know: visible names link into ..data, which links to a
// directory of its own for each version. Nothing is written if nothing changed.
// gid is the group of the files, or -1.
func writeAtomic(dir string, payload map[string]file, gid int) error {
	for p := range payload {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	data := filepath.Join(dir, "..data")
	old, err := os.Readlink(data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read ..data: %w", err)
	}
	if old != "" && same(filepath.Join(dir, old), payload) {
		return link(dir, payload) // finishes what a crash may have left
	}
	version, err := os.MkdirTemp(dir, "..version_")
	if err != nil {
		return fmt.Errorf("create version: %w", err)
	}
	if err := writeVersion(version, payload, gid); err != nil {
		return errors.Join(err, os.RemoveAll(version))
	}
	tmp := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove ..data_tmp: %w", err)
	}
	if err := os.Symlink(filepath.Base(version), tmp); err != nil {
		return fmt.Errorf("link version: %w", err)
	}
	if err := os.Rename(tmp, data); err != nil {
		return fmt.Errorf("publish version: %w", err)
	}
	if err := link(dir, payload); err != nil {
		return err
	}
	return removeStale(dir, filepath.Base(version), payload)
}

func checkPath(p string) error {
	if p == "" || filepath.IsAbs(p) || filepath.Clean(p) != p || strings.HasPrefix(p, "..") {
		return fmt.Errorf("path %q must be relative and must not contain '..'", p)
	}
	return nil
}

func writeVersion(version string, payload map[string]file, gid int) error {
	if err := os.Chmod(version, 0o755); err != nil {
		return fmt.Errorf("chmod version: %w", err)
	}
	for p, f := range payload {
		path := filepath.Join(version, p)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("create %s: %w", p, err)
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return fmt.Errorf("write %s: %w", p, err)
		}
		if f.uid >= 0 || gid >= 0 {
			if err := os.Chown(path, f.uid, gid); err != nil {
				return fmt.Errorf("chown %s: %w", p, err)
			}
		}
		if err := os.Chmod(path, f.mode); err != nil { // past the umask
			return fmt.Errorf("chmod %s: %w", p, err)
		}
	}
	return nil
}

// same says whether the version on disk holds exactly the payload.
func same(version string, payload map[string]file) bool {
	found := 0
	err := filepath.WalkDir(version, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(version, path)
		if err != nil {
			return err
		}
		f, ok := payload[rel]
		if !ok {
			return fs.ErrNotExist
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !bytes.Equal(have, f.data) || info.Mode().Perm() != f.mode.Perm() {
			return fs.ErrNotExist
		}
		found++
		return nil
	})
	return err == nil && found == len(payload)
}

func topNames(payload map[string]file) map[string]bool {
	out := map[string]bool{}
	for p := range maps.Keys(payload) {
		top, _, _ := strings.Cut(p, "/")
		out[top] = true
	}
	return out
}

func link(dir string, payload map[string]file) error {
	for name := range topNames(payload) {
		err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

func removeStale(dir, version string, payload map[string]file) error {
	keep := topNames(payload)
	keep["..data"], keep[version] = true, true
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read volume: %w", err)
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove old version: %w", err)
		}
	}
	return nil
}
