package memory

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/rundigitalplatform/rookery/runtime"
)

// AddImage makes an image local, taking its names from other images. Short
// names are completed (hello:1 becomes localhost/hello:1); without an ID it gets one.
func (m *Machine) AddImage(img runtime.Image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addImage(normalise(img))
}

// addImage is called with the lock.
func (m *Machine) addImage(img runtime.Image) {
	for i := range m.images {
		m.images[i].Names = slices.DeleteFunc(m.images[i].Names, func(n string) bool { return slices.Contains(img.Names, n) })
	}
	i := slices.IndexFunc(m.images, func(old runtime.Image) bool { return old.ID == img.ID })
	if i < 0 {
		m.images = append(m.images, img)
		return
	}
	img.Names = append(slices.Clone(m.images[i].Names), img.Names...)
	m.images[i] = img
}

func normalise(img runtime.Image) runtime.Image {
	names := make([]string, len(img.Names))
	for i, n := range img.Names {
		names[i] = runtime.Names(n)[0]
	}
	img.Names = names
	if img.ID == "" {
		img.ID = fmt.Sprintf("sha256:%x", sha256.Sum256(fmt.Append(nil, names)))
	}
	return img
}

func find(images []runtime.Image, ref string) (runtime.Image, bool) {
	for _, name := range runtime.Names(ref) {
		for _, img := range images {
			if img.ID == name || slices.Contains(img.Names, name) || slices.Contains(img.Digests, name) {
				return copyImage(img), true
			}
		}
	}
	return runtime.Image{}, false
}

func copyImage(img runtime.Image) runtime.Image {
	img.Names, img.Digests = slices.Clone(img.Names), slices.Clone(img.Digests)
	return img
}

// Image implements runtime.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (runtime.Image, error) {
	if err := r.m.enter(ctx); err != nil {
		return runtime.Image{}, fmt.Errorf("look up image %s: %w", ref, err)
	}
	defer r.m.mu.Unlock()
	img, ok := find(r.m.images, ref)
	if !ok {
		return runtime.Image{}, fmt.Errorf("look up image %s: %w", ref, runtime.ErrNotFound)
	}
	return img, nil
}

// Images implements runtime.Runtime.
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	if err := r.m.enter(ctx); err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	defer r.m.mu.Unlock()
	out := make([]runtime.Image, 0, len(r.m.images))
	for _, img := range r.m.images {
		img = copyImage(img)
		img.Containers = len(r.m.madeFrom(img.ID))
		out = append(out, img)
	}
	return out, nil
}

// madeFrom are the containers of an image. Called with the lock.
func (m *Machine) madeFrom(id string) (ids []string) {
	for _, c := range m.containers {
		if c.state.ImageID == id {
			ids = append(ids, c.state.ID)
		}
	}
	return ids
}

// RemoveImage implements runtime.Runtime.
func (r *Runtime) RemoveImage(ctx context.Context, id string) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	if users := r.m.madeFrom(id); len(users) > 0 {
		return fmt.Errorf("remove image %s: %w by container %s", id, runtime.ErrInUse, users[0])
	}
	r.m.images = slices.DeleteFunc(r.m.images, func(img runtime.Image) bool { return img.ID == id })
	return nil
}

// MountImage implements runtime.Runtime: the directory is there, with nothing in it.
func (r *Runtime) MountImage(ctx context.Context, sandboxID, ref string) (string, error) {
	if err := r.m.enter(ctx); err != nil {
		return "", fmt.Errorf("mount image %s: %w", ref, err)
	}
	defer r.m.mu.Unlock()
	img, ok := find(r.m.images, ref)
	switch {
	case r.m.sandboxes[sandboxID] == nil:
		return "", fmt.Errorf("mount image %s: sandbox %s: %w", ref, sandboxID, runtime.ErrNotFound)
	case !ok:
		return "", fmt.Errorf("mount image %s: %w", ref, runtime.ErrNotFound)
	case r.m.cfg.ImageDir == "":
		return "", fmt.Errorf("mount image %s: the machine has no directory for that", ref)
	}
	path := filepath.Join(r.m.cfg.ImageDir, img.ID)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", fmt.Errorf("mount image %s: %w", ref, err)
	}
	return path, nil
}

// PullImage implements runtime.Runtime over Config.Registry and Config.Pull.
func (r *Runtime) PullImage(ctx context.Context, ref string, auth *runtime.RegistryAuth) (runtime.Image, error) {
	if r.m.cfg.Pull != nil {
		if err := r.m.cfg.Pull(ctx, ref, auth); err != nil {
			return runtime.Image{}, err
		}
	}
	if err := r.m.enter(ctx); err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	defer r.m.mu.Unlock()
	img, ok := find(r.m.registry, ref)
	if !ok {
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", ref, runtime.ErrNotFound)
	}
	r.m.addImage(img)
	return copyImage(img), nil
}

// LoadImage implements runtime.Runtime for docker archives: it reads the names from manifest.json.
func (r *Runtime) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	if err := r.m.enter(ctx); err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	r.m.mu.Unlock()
	img, err := readArchive(archive)
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.addImage(img)
	return slices.Clone(img.Names), nil
}

func readArchive(archive io.Reader) (runtime.Image, error) {
	var manifest []struct {
		Config   string
		RepoTags []string
	}
	for tr := tar.NewReader(archive); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return runtime.Image{}, fmt.Errorf("read archive: %w", err)
		}
		if header.Name != "manifest.json" {
			continue
		}
		if err := json.NewDecoder(tr).Decode(&manifest); err != nil {
			return runtime.Image{}, fmt.Errorf("read manifest.json: %w", err)
		}
	}
	if len(manifest) != 1 {
		return runtime.Image{}, errors.New("not a docker archive of one image")
	}
	return normalise(runtime.Image{
		ID:    fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(manifest[0].Config))),
		Names: manifest[0].RepoTags,
	}), nil
}
