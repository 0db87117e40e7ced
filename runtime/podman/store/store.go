// Package store reads the files in which Podman keeps images and containers
// (containers/storage with the overlay driver, and libpod's database), finds what
// a power loss broke in them, and sets torn files aside so that Podman starts. It
// needs no Podman that answers. Package podman calls it, and removes by Podman's API
// what is damaged inside; Podman has a check of its own from version 5.2 on only.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Findings is what is broken.
type Findings struct {
	Torn   []Torn
	Images []Image
}

// Torn is a file that cannot be read as a whole.
type Torn struct {
	Path string
	What string // "Podman's list of images"
	Why  string
	kind kind
	lock string // that whoever changes the file holds; empty for the database
}

// Image is a damaged image.
type Image struct {
	ID    string // without sha256:
	Names []string
	Why   string
}

type kind int

const (
	list kind = iota
	database
)

// layer, image: what is needed of an entry of layers.json and images.json.
type layer struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
}

type image struct {
	ID    string           `json:"id"`
	Names []string         `json:"names"`
	Layer string           `json:"layer"`
	Keys  []string         `json:"big-data-names"`
	Sizes map[string]int64 `json:"big-data-sizes"`
}

// Options of [Look].
type Options struct {
	// Thorough looks whether each file of each image has its size, which costs a stat of all of them.
	Thorough bool
	// Others says that Podman has further image stores (additionalimagestores in
	// storage.conf): a layer that is not in this one may be there.
	Others bool
}

// Look reads the storage in dir, Podman's graph root, and changes nothing.
// Storage of other drivers than overlay is not looked into.
func Look(dir string, opts Options) (Findings, error) {
	var found Findings
	images, layers, torn, err := readLists(dir)
	found.Torn = torn
	if err != nil {
		return found, err
	}
	l := looker{dir: dir, opts: opts, parents: map[string]string{}, known: map[string]string{}}
	for _, at := range layers {
		l.parents[at.ID] = at.Parent
	}
	for _, img := range images {
		why, err := l.image(img)
		if err != nil {
			return found, fmt.Errorf("look at image %s: %w", img.ID, err)
		}
		if why != "" {
			found.Images = append(found.Images, Image{ID: img.ID, Names: img.Names, Why: why})
		}
	}
	return found, nil
}

// LookAtLists reads the databases and lists alone, which takes no look at any image or layer.
func LookAtLists(dir string) ([]Torn, error) {
	_, _, torn, err := readLists(dir)
	return torn, err
}

func readLists(dir string) (images []image, layers []layer, torn []Torn, err error) {
	torn = lookAtDatabases(dir)
	if _, err := os.Stat(filepath.Join(dir, "overlay")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // another driver, or nothing yet
		}
		return nil, nil, torn, err
	}
	// Images before layers: an image that comes meanwhile has its layers before it is listed.
	images, imagesTorn, err := readList[image](filepath.Join(dir, "overlay-images", "images.json"), "Podman's list of images", "images.lock")
	if err != nil {
		return nil, nil, torn, err
	}
	layers, layersTorn, err := readList[layer](filepath.Join(dir, "overlay-layers", "layers.json"), "Podman's list of layers", "layers.lock")
	torn = slices.Concat(torn, layersTorn, imagesTorn)
	if err != nil {
		return nil, nil, torn, err
	}
	for _, name := range []string{"containers.json", "volatile-containers.json"} {
		_, more, err := readList[struct{}](filepath.Join(dir, "overlay-containers", name), "Podman's list of containers", "containers.lock")
		torn = append(torn, more...)
		if err != nil {
			return nil, nil, torn, err
		}
	}
	return images, layers, torn, nil
}

// readList reads a JSON array as far as it goes. A file that is not there is an empty list.
func readList[T any](path, what, lock string) (all []T, torn []Torn, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read Podman's storage: %w", err)
	}
	defer f.Close()
	all, bad := decode[T](json.NewDecoder(f))
	if bad != nil {
		torn = []Torn{{Path: path, What: what, Why: "it is torn: " + bad.Error(), lock: filepath.Join(filepath.Dir(path), lock)}}
	}
	return all, torn, nil
}

// decode returns the whole elements of an array, and why there are no more.
func decode[T any](from *json.Decoder) (all []T, err error) {
	start, err := from.Token()
	if err != nil {
		return nil, err
	}
	if start == nil {
		return nil, nil // null, as an empty list may be written
	}
	if start != json.Delim('[') {
		return nil, fmt.Errorf("it begins with %v", start)
	}
	for from.More() {
		var one T
		if err := from.Decode(&one); err != nil {
			return all, err
		}
		all = append(all, one)
	}
	_, err = from.Token()
	return all, err
}

// Names of an image for people: its id if it has none.
func (i Image) String() string {
	if len(i.Names) == 0 {
		return i.ID[:min(12, len(i.ID))]
	}
	names := slices.Clone(i.Names)
	slices.Sort(names)
	text := names[0]
	for _, name := range names[1:] {
		text += ", " + name
	}
	return text
}
