package store

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// looker knows the layers, and what was found out about each.
type looker struct {
	dir     string
	opts    Options
	parents map[string]string // by layer; of those in the list
	known   map[string]string // why a layer is damaged; empty: it is not
}

// image is why an image cannot be used; empty: nothing is wrong with it.
func (l *looker) image(img image) (why string, err error) {
	for _, key := range img.Keys {
		if why, err := l.data(img, key); why != "" || err != nil {
			return why, err
		}
	}
	for id := img.Layer; id != ""; id = l.parents[id] {
		why, known := l.known[id]
		if !known {
			if why, err = l.layer(id); err != nil {
				return "", err
			}
			l.known[id] = why
		}
		if why != "" {
			return why, nil
		}
	}
	return "", nil
}

// data is what is wrong with one of an image's small files: its manifest, its configuration.
func (l *looker) data(img image, key string) (why string, err error) {
	size, known := img.Sizes[key]
	if !known {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "overlay-images", img.ID, fileOf(key)))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("its %s is missing", nameOf(key)), nil
	}
	if err != nil {
		return "", err
	}
	if int64(len(text)) != size {
		return fmt.Sprintf("its %s has %d bytes instead of %d", nameOf(key), len(text), size), nil
	}
	sum := sha256.Sum256(text)
	// The configuration's key is its digest. That of a manifest may be of the registry's form of it.
	if want, is := strings.CutPrefix(key, "sha256:"); is && want != hex.EncodeToString(sum[:]) {
		return fmt.Sprintf("its %s is not what it was", nameOf(key)), nil
	}
	return "", nil
}

// fileOf is the name of the file of a key, as containers/storage makes it.
func fileOf(key string) string {
	plain := strings.Trim(key, ".0123456789abcdefghijklmnopqrstuvwxyz") == ""
	if plain {
		return key
	}
	return "=" + base64.StdEncoding.EncodeToString([]byte(key))
}

func nameOf(key string) string {
	switch {
	case strings.HasPrefix(key, "sha256:"):
		return "configuration"
	case strings.HasPrefix(key, "manifest"):
		return "manifest"
	case strings.HasPrefix(key, "signature"):
		return "signature"
	}
	return "data " + key
}

// layer is what is wrong with a layer itself, its parents aside.
func (l *looker) layer(id string) (why string, err error) {
	short := id[:min(12, len(id))]
	if _, listed := l.parents[id]; !listed {
		if l.opts.Others {
			return "", nil
		}
		return fmt.Sprintf("its layer %s is in no list", short), nil
	}
	home := filepath.Join(l.dir, "overlay", id)
	if _, err := os.Stat(filepath.Join(home, "diff")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("its layer %s is missing", short), nil
	} else if err != nil {
		return "", err
	}
	if info, err := os.Stat(filepath.Join(home, "link")); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return fmt.Sprintf("the short name of its layer %s is lost", short), nil
	} else if err != nil {
		return "", err
	}
	if !l.opts.Thorough {
		return "", nil
	}
	if _, err := os.Stat(filepath.Join(home, "composefs-data")); err == nil {
		return "", nil // its files have other names
	}
	broken, err := compare(filepath.Join(l.dir, "overlay-layers", id+".tar-split.gz"), filepath.Join(home, "diff"))
	if broken != "" {
		broken = fmt.Sprintf("in its layer %s %s", short, broken)
	}
	return broken, err
}

// entry is a line of a layer's tar-split file: what is needed to make its archive again.
type entry struct {
	Type int    `json:"type"`
	Name string `json:"name"`
	Raw  []byte `json:"name_raw"`
	Size int64  `json:"size"`
}

// fileEntry is the type of a file; the others are pieces of headers.
const fileEntry = 1

// compare returns the first file of a layer that is not as long as it was. A layer without
// a list, as of an image that was built here, cannot be compared.
func compare(list, diff string) (broken string, err error) {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	const listTorn = "the list of files is torn"
	unzipped, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return listTorn, nil
	}
	for lines := json.NewDecoder(unzipped); ; {
		var e entry
		switch err := lines.Decode(&e); {
		case errors.Is(err, io.EOF):
			return "", nil
		case err != nil:
			return listTorn, nil
		case e.Type != fileEntry || e.Size == 0:
			continue
		}
		name := e.Name
		if name == "" {
			name = string(e.Raw)
		}
		info, err := os.Lstat(filepath.Join(diff, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Sprintf("the file %s is missing", name), nil
		case err != nil:
			return "", err
		case info.Mode().IsRegular() && info.Size() != e.Size:
			return fmt.Sprintf("the file %s has %d bytes instead of %d", name, info.Size(), e.Size), nil
		}
	}
}
