package node

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/images"
)

// newImages is the manager of this peer's images. Its memory is beside the pods' files.
func (a *Agent) newImages() (*images.Manager, error) {
	return images.New(images.Config{
		Engine: a.cfg.Runtime, File: filepath.Join(a.cfg.Dir, "images.json"), Disk: a.imageDisk,
		Named: a.namedImages, Changed: func() { a.node.kick() },
		Short: func(message string) {
			a.log.Warn(message)
			a.events.Event(a.nodeRef(), v1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		},
		Policy: a.cfg.Images, Logger: a.log,
	})
}

func (a *Agent) nodeRef() *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Node", Name: a.cfg.Name, UID: types.UID(a.cfg.Name)} // the UID as kubelet's
}

// imageDisk measures the file system that images and containers are on.
func (a *Agent) imageDisk() (images.Disk, error) {
	a.node.mu.Lock()
	dir := a.node.info.StoreDir
	a.node.mu.Unlock()
	if dir == "" {
		return images.Disk{}, errors.New("it is not known yet where images are kept")
	}
	d, err := diskFree(dir)
	return images.Disk{Total: d.total, Free: d.free}, err
}

// namedImages are those of the pods that are bound here.
func (a *Agent) namedImages() []string {
	var out []string
	for _, w := range a.allWorkers() {
		out = append(out, imageRefs(w.spec())...)
	}
	return out
}

// Reclaim removes images that nothing here needs, the least recently used first, and returns
// how many bytes they had: for a disk under pressure. What was loaded by hand stays.
func (a *Agent) Reclaim(ctx context.Context) (freed int64, err error) { return a.images.Reclaim(ctx) }

// LoadImage reads an archive that a person brought into the engine and returns the names
// it had. Its image is never removed to free space.
func (a *Agent) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	return a.images.Load(ctx, archive)
}
