// Package image writes container images without an engine and without a
// registry: a docker archive of one layer, from files in memory or on disk.
// The same spec always gives the same bytes, so the same image id.
//
// The runtime's tests, the lab and the build of the sample use it.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Spec is what an image is made from.
type Spec struct {
	Names      []string // e.g. localhost/hello:1; at least one
	Files      []File   // any order; parent directories are added
	Entrypoint []string
	Cmd        []string
	Env        []string // KEY=value
	WorkDir    string
	User       string
	StopSignal string
	Labels     map[string]string
	Arch       string // GOARCH; empty: this machine's
}

// File is one file of the layer.
type File struct {
	Path string // absolute
	Mode int64  // permission bits; 0: 0755 for directories and links, 0644 for files
	Data []byte
	Link string // makes it a symbolic link
	Dir  bool   // makes it a directory
}

// epoch is the time of everything in an image: a fixed one, so that the same spec gives the same id.
func epoch() time.Time { return time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC) }

// Write writes the image as a docker archive, which `podman load` and
// runtime.LoadImage read.
func Write(w io.Writer, spec Spec) error {
	if len(spec.Names) == 0 {
		return errors.New("write image: it has no name")
	}
	layer, err := layer(spec.Files)
	if err != nil {
		return fmt.Errorf("write image %s: %w", spec.Names[0], err)
	}
	config, err := json.Marshal(configOf(spec, layer))
	if err != nil {
		return fmt.Errorf("write image %s: %w", spec.Names[0], err)
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	layerName := fmt.Sprintf("%x.tar", sha256.Sum256(layer))
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": spec.Names, "Layers": []string{layerName}}})
	if err != nil {
		return fmt.Errorf("write image %s: %w", spec.Names[0], err)
	}
	tw := tar.NewWriter(w)
	for _, f := range []File{{Path: "/manifest.json", Data: manifest}, {Path: "/" + configName, Data: config}, {Path: "/" + layerName, Data: layer}} {
		if err := add(tw, f); err != nil {
			return fmt.Errorf("write image %s: %w", spec.Names[0], err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("write image %s: %w", spec.Names[0], err)
	}
	return nil
}

// configOf is the image configuration (OCI image spec, config.md).
func configOf(spec Spec, layer []byte) any {
	arch := spec.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	return map[string]any{
		"architecture": arch,
		"os":           "linux",
		"created":      epoch().Format(time.RFC3339),
		"config": map[string]any{
			"Entrypoint": spec.Entrypoint,
			"Cmd":        spec.Cmd,
			"Env":        spec.Env,
			"WorkingDir": spec.WorkDir,
			"User":       spec.User,
			"StopSignal": spec.StopSignal,
			"Labels":     spec.Labels,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		"history": []map[string]any{{"created": epoch().Format(time.RFC3339), "created_by": "rookery"}},
	}
}

func layer(files []File) ([]byte, error) {
	byPath := map[string]File{}
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return nil, fmt.Errorf("file %q: its path must be absolute and clean", f.Path)
		}
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if _, ok := byPath[dir]; !ok {
				byPath[dir] = File{Path: dir, Dir: true}
			}
		}
		byPath[f.Path] = f
	}
	paths := make([]string, 0, len(byPath))
	for p := range byPath {
		paths = append(paths, p)
	}
	slices.Sort(paths) // a directory sorts before what is in it
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, p := range paths {
		if err := add(tw, byPath[p]); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	return buf.Bytes(), nil
}

func add(tw *tar.Writer, f File) error {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, ModTime: epoch(), Typeflag: tar.TypeReg, Size: int64(len(f.Data))}
	switch {
	case f.Dir:
		h.Typeflag, h.Name, h.Size = tar.TypeDir, h.Name+"/", 0
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
	}
	if h.Mode == 0 {
		h.Mode = 0o755
		if h.Typeflag == tar.TypeReg {
			h.Mode = 0o644
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("add file %s: %w", f.Path, err)
	}
	if h.Size == 0 {
		return nil
	}
	if _, err := tw.Write(f.Data); err != nil {
		return fmt.Errorf("add file %s: %w", f.Path, err)
	}
	return nil
}
