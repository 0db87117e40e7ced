package podman

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/domain/entities"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Image implements runtime.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (runtime.Image, error) {
	err := runtime.ErrNotFound
	for _, name := range runtime.Names(ref) {
		var img runtime.Image
		img, err = call(ctx, r.engine, func(ctx context.Context) (runtime.Image, error) {
			report, err := images.GetImage(ctx, name, nil)
			if err != nil {
				return runtime.Image{}, err
			}
			out := runtime.Image{
				ID:      imageID(report.ID),
				Names:   report.RepoTags,
				Digests: report.RepoDigests,
				Size:    report.Size,
				User:    report.User,
			}
			if report.Config != nil {
				out.StopSignal = report.Config.StopSignal
			}
			return out, nil
		})
		if err == nil {
			return img, nil
		}
		if !errors.Is(err, runtime.ErrNotFound) {
			break
		}
	}
	return runtime.Image{}, fmt.Errorf("look up image %s: %w", ref, err)
}

// Images implements runtime.Runtime.
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	list, err := call(ctx, r.engine, func(ctx context.Context) ([]*entities.ImageSummary, error) {
		return images.List(ctx, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := make([]runtime.Image, 0, len(list))
	for _, img := range list {
		out = append(out, runtime.Image{ID: imageID(img.ID), Names: img.RepoTags, Digests: img.RepoDigests, Size: img.Size})
	}
	return out, nil
}

// PullImage implements runtime.Runtime.
func (r *Runtime) PullImage(ctx context.Context, ref string, auth *runtime.RegistryAuth) (runtime.Image, error) {
	names := runtime.Names(ref)
	if len(names) == 0 {
		return runtime.Image{}, errors.New("pull image: its name is empty")
	}
	name := names[len(names)-1]
	opts := new(images.PullOptions).WithQuiet(true).WithPolicy("always")
	if auth != nil {
		opts = opts.WithUsername(auth.Username).WithPassword(auth.Password)
	}
	ids, err := call(ctx, r.engine, func(ctx context.Context) ([]string, error) { return images.Pull(ctx, name, opts) })
	if err == nil && len(ids) == 0 {
		err = errors.New("podman ended without an image")
	}
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", name, err)
	}
	return r.Image(ctx, name)
}

// LoadImage implements runtime.Runtime.
func (r *Runtime) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	names, err := call(ctx, r.engine, func(ctx context.Context) ([]string, error) {
		report, err := images.Load(ctx, archive)
		if err != nil {
			return nil, err
		}
		return report.Names, nil
	})
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	return names, nil
}
