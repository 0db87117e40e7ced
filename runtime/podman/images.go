package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/domain/entities"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Image implements runtime.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (runtime.Image, error) {
	err := runtime.ErrNotFound
	for _, name := range r.names(ref) {
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
		out = append(out, runtime.Image{
			ID: imageID(img.ID), Names: img.RepoTags, Digests: img.RepoDigests, Size: img.Size,
			Labels: img.Labels, Containers: img.Containers,
		})
	}
	r.forgetAccounts(out)
	return out, nil
}

// names are the fully qualified names to try, in order. Where the machine's
// registries.conf says at which registries a short name is to be looked for, that is
// obeyed; otherwise it is Docker Hub's.
func (r *Runtime) names(ref string) []string {
	names := runtime.Names(ref)
	search := r.search.Load()
	if len(names) < 2 || search == nil || len(*search) == 0 {
		return names
	}
	local, hub := names[0], names[1]
	names = []string{local}
	for _, registry := range *search {
		if registry == "docker.io" {
			names = append(names, hub)
		} else {
			names = append(names, registry+"/"+strings.TrimPrefix(local, "localhost/"))
		}
	}
	return names
}

// PullImage implements runtime.Runtime. Podman obeys the machine's registries.conf:
// mirrors, insecure and blocked registries.
func (r *Runtime) PullImage(ctx context.Context, ref string, auth *runtime.RegistryAuth) (runtime.Image, error) {
	names := runtime.Names(ref)
	if len(names) == 0 {
		return runtime.Image{}, errors.New("pull image: its name is empty")
	}
	if len(names) > 1 { // it is a short one
		if err := r.learn(ctx); err != nil {
			return runtime.Image{}, fmt.Errorf("pull image %s: %w", ref, err)
		}
	}
	var errs []error
	for _, name := range r.names(ref) {
		if strings.HasPrefix(name, "localhost/") && name != ref {
			continue // of a short name: nothing is ever pulled from there
		}
		img, err := r.pull(ctx, name, auth)
		if err == nil {
			return img, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, runtime.ErrUnavailable) {
			break
		}
	}
	return runtime.Image{}, errors.Join(errs...)
}

// learn asks once where short names are looked for.
func (r *Runtime) learn(ctx context.Context) error {
	if r.search.Load() != nil {
		return nil
	}
	_, err := r.Info(ctx)
	return err
}

func (r *Runtime) pull(ctx context.Context, name string, auth *runtime.RegistryAuth) (runtime.Image, error) {
	opts := new(images.PullOptions).WithQuiet(true).WithPolicy("always")
	if auth != nil {
		opts = opts.WithUsername(auth.Username).WithPassword(auth.Password)
	}
	ids, err := call(ctx, r.engine, func(ctx context.Context) ([]string, error) { return images.Pull(ctx, name, opts) })
	switch {
	case err == nil && len(ids) == 0:
		return runtime.Image{}, fmt.Errorf("pull image %s: podman ended without an image", name)
	case err != nil && (ctx.Err() != nil || errors.Is(err, runtime.ErrUnavailable)):
		return runtime.Image{}, fmt.Errorf("pull image %s: %w", name, err)
	case err != nil:
		return runtime.Image{}, err // it names the image, and says enough
	}
	return r.Image(ctx, name)
}

// RemoveImage implements runtime.Runtime. Podman removes an image of several names
// only by force, which would take its containers along; so they go one by one.
func (r *Runtime) RemoveImage(ctx context.Context, id string) error {
	img, err := r.Image(ctx, id)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	if err := r.unused(ctx, img.ID); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	names := img.Names
	if len(names) == 0 {
		names = []string{strings.TrimPrefix(img.ID, "sha256:")}
	}
	err = do(ctx, r.engine, func(ctx context.Context) error {
		_, errs := images.Remove(ctx, names, nil)
		return errors.Join(errs...)
	})
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// unused gives ErrInUse if a container is made from the image. Podman would refuse
// too, but only after it had taken away all names but one.
func (r *Runtime) unused(ctx context.Context, id string) error {
	users, err := r.containersOf(ctx, "ancestor", strings.TrimPrefix(id, "sha256:"))
	if err == nil && len(users) > 0 {
		err = fmt.Errorf("%w by container %s", runtime.ErrInUse, users[0].ID)
	}
	return err
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
