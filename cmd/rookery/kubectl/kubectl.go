// Package kubectl is the kubectl that rookery carries: a second program,
// compressed inside the binary, unpacked to the user's cache on first use and
// then executed in place of rookery. It is used by cmd/rookery alone.
//
// `make build` puts the program at kubectl.zst before it compiles rookery. A
// rookery that was compiled without it falls back to a kubectl on PATH.
package kubectl

import (
	"bytes"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

//go:embed kubectl*
var files embed.FS

const packed = "kubectl.zst"

// Exec replaces this process by kubectl with the given arguments (without the
// program's name) and environment. It returns only on failure.
func Exec(args, env []string) error {
	path, err := locate()
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{"kubectl"}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

func locate() (string, error) {
	data, err := files.ReadFile(packed)
	if errors.Is(err, fs.ErrNotExist) {
		path, err := exec.LookPath("kubectl")
		if err != nil {
			return "", errors.New("this rookery was built without its kubectl and there is none on PATH: build with `make build`, or install kubectl")
		}
		return path, nil
	}
	if err != nil {
		return "", fmt.Errorf("read embedded kubectl: %w", err)
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	return unpack(data, dir)
}

// cacheDir is a directory of this user's own: root's must not be one that
// another user could have prepared.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil { // no HOME, as under some init systems
		base = filepath.Join("/var/cache", fmt.Sprint(os.Getuid()))
	}
	dir := filepath.Join(base, "rookery")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make room to unpack kubectl: %w; set XDG_CACHE_HOME to a directory that can be written", err)
	}
	return dir, nil
}

// unpack writes the program to dir unless a whole copy is there already. The file
// is named by the checksum that the packed program ends with; it gets its name when
// it is on the disk, so that one of the right size is whole. Nothing is summed up
// at each call: on a small board that would take longer than most commands.
func unpack(data []byte, dir string) (string, error) {
	var header zstd.Header
	if err := header.Decode(data); err != nil {
		return "", fmt.Errorf("unpack kubectl: %w", err)
	}
	if !header.HasCheckSum || !header.HasFCS {
		return "", errors.New("unpack kubectl: it was packed without its size or checksum; pack it with `zstd`")
	}
	path := filepath.Join(dir, "kubectl-"+hex.EncodeToString(data[len(data)-4:]))
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && uint64(info.Size()) == header.FrameContentSize {
		return path, nil
	}
	zr, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", fmt.Errorf("unpack kubectl: %w", err)
	}
	defer zr.Close()
	tmp, err := os.CreateTemp(dir, "unpack-*")
	if err != nil {
		return "", fmt.Errorf("unpack kubectl: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err := io.Copy(tmp, zr); err != nil {
		tmp.Close()
		return "", fmt.Errorf("unpack kubectl to %s: %w", dir, err)
	}
	if err := errors.Join(tmp.Chmod(0o700), tmp.Sync(), tmp.Close()); err != nil {
		return "", fmt.Errorf("unpack kubectl to %s: %w", dir, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", fmt.Errorf("unpack kubectl: %w", err)
	}
	return path, nil
}
