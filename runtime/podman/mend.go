package podman

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/blang/semver/v4"
	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/bindings/system"
	"github.com/containers/podman/v4/pkg/domain/entities"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman/store"
)

// listWait is for a Podman that writes a list; one that holds it for longer hangs.
const listWait = 10 * time.Second

// MendFiles sets aside what a power loss left torn in Podman's storage in dir, so that
// Podman starts; it need not run. What could not be set aside is in the error. It waits
// for each list that another program has locked, for some seconds or until ctx ends.
func MendFiles(ctx context.Context, dir string) (all []runtime.Damage, err error) {
	found, err := store.LookAtLists(dir)
	if err != nil {
		return nil, fmt.Errorf("look at Podman's storage: %w", err)
	}
	var errs []error
	for _, torn := range found {
		limited, cancel := context.WithTimeout(ctx, listWait)
		to, err := store.SetAside(limited, torn, time.Now())
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, runtime.Damage{
			What: fmt.Sprintf("%s: %s", torn.What, torn.Why), Done: "it was set aside as " + to,
			Cure: "pods get new containers, and images are pulled again; load again what you had loaded by hand and is missing now, and make again containers of your own",
		})
	}
	return all, errors.Join(errs...)
}

// CheckFiles is what is broken in Podman's storage in dir. It looks at each file of each
// image, and changes nothing.
func CheckFiles(dir string) (broken []string, err error) {
	found, err := store.Look(dir, store.Options{Thorough: true, Others: true})
	for _, torn := range found.Torn {
		broken = append(broken, fmt.Sprintf("%s: %s", torn.What, torn.Why))
	}
	for _, img := range found.Images {
		broken = append(broken, fmt.Sprintf("image %s: %s", img, img.Why))
	}
	return broken, err
}

// Mend looks for what a power loss broke in Podman's storage, and mends it while no pod
// starts: torn files are set aside, damaged images are removed, so that they can be pulled
// or loaded again, and so are containers that Podman itself forgot. An image stays, and that
// is told, if a container runs on it or one that is not this owner's was made from it.
// Thorough: each file of each image is looked at; ours tells by its name whether a
// forgotten container was this owner's.
func (r *Runtime) Mend(ctx context.Context, thorough bool, ours func(name string) bool) ([]runtime.Damage, error) {
	dir, opts, err := r.stored(ctx)
	if err != nil {
		return nil, err
	}
	all, err := MendFiles(ctx, dir)
	if err != nil {
		return all, err
	}
	opts.Thorough = thorough
	found, err := store.Look(dir, opts)
	if err != nil {
		return all, fmt.Errorf("look at Podman's storage: %w", err)
	}
	if len(found.Images) > 0 { // one that is being removed just now is no damage
		again, err := store.Look(dir, opts)
		if err != nil {
			return all, fmt.Errorf("look at Podman's storage: %w", err)
		}
		found.Images = slices.DeleteFunc(found.Images, func(img store.Image) bool {
			return !slices.ContainsFunc(again.Images, func(other store.Image) bool { return other.ID == img.ID && other.Why == img.Why })
		})
	}
	if len(found.Images) == 0 && len(all) == 0 && !thorough {
		return nil, nil
	}
	list, err := call(ctx, r.engine, func(ctx context.Context) ([]entities.ListContainer, error) {
		return containers.List(ctx, new(containers.ListOptions).WithAll(true).WithExternal(true))
	})
	if err != nil {
		for _, img := range found.Images {
			if errors.Is(err, runtime.ErrUnavailable) {
				break // whoever calls tries again, and they are found then
			}
			all = append(all, damaged(img, "it was kept, for Podman did not say which containers there are"))
		}
		return all, fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, c := range list {
		if c.State == external && len(c.Names) > 0 && ours(c.Names[0]) {
			errs = append(errs, r.RemoveContainer(ctx, c.ID))
		}
	}
	for _, img := range found.Images {
		done, err := r.discard(ctx, img, list)
		errs = append(errs, err)
		all = append(all, damaged(img, done))
	}
	return all, errors.Join(errs...)
}

// infoTime bounds how long a container that hangs holds up those who only need to know
// where Podman has its files.
const infoTime = 20 * time.Second

// stored is where Podman's storage is, and whether it has others.
func (r *Runtime) stored(ctx context.Context) (dir string, opts store.Options, err error) {
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	defer cancel()
	report, err := call(ctx, r.engine, func(ctx context.Context) (*define.Info, error) { return system.Info(ctx, nil) })
	if err != nil {
		return "", opts, fmt.Errorf("ask podman where its storage is: %w", err)
	}
	if report.Store == nil {
		return "", opts, errors.New("podman does not say where its storage is")
	}
	for option := range report.Store.GraphOptions { // overlay.imagestore, overlay.additionalimagestore
		opts.Others = opts.Others || strings.HasSuffix(option, "imagestore")
	}
	return report.Store.GraphRoot, opts, nil
}

// external is the state of a container that is in the storage and unknown to libpod.
const external = "storage"

// damaged says what became of a damaged image; done empty: it was removed.
func damaged(img store.Image, done string) runtime.Damage {
	d := runtime.Damage{What: fmt.Sprintf("image %s: %s", img, img.Why), Done: done}
	switch {
	case done != "":
		d.Cure = "remove it with `podman rmi --force` when it can be spared, and pull or load it again"
	case slices.ContainsFunc(img.Names, func(name string) bool { return strings.HasPrefix(name, "localhost/podman-pause:") }):
		d.Done, d.Cure = "it was removed", "Podman makes it again"
	default:
		d.Done, d.Image, d.Names = "it was removed", imageID(img.ID), img.Names
	}
	return d
}

// discard removes an image with the owner's containers; kept says why it did not.
func (r *Runtime) discard(ctx context.Context, img store.Image, list []entities.ListContainer) (kept string, err error) {
	var users []entities.ListContainer
	for _, c := range list {
		if c.ImageID != img.ID || c.State == external {
			continue
		}
		switch {
		case c.State == define.ContainerStateRunning.String():
			return fmt.Sprintf("it was kept, for container %s runs on it", c.Names[0]), nil
		case c.Labels[runtime.LabelOwner] != r.owner:
			return fmt.Sprintf("it was kept, for container %s is not rookery's", c.Names[0]), nil
		}
		users = append(users, c)
	}
	for _, c := range users {
		if c.IsInfra {
			err = r.removePod(ctx, c.Pod)
		} else {
			err = r.RemoveContainer(ctx, c.ID)
		}
		if err != nil {
			return "it was kept, for a container could not be removed", err
		}
	}
	err = do(ctx, r.engine, func(ctx context.Context) error {
		_, errs := images.Remove(ctx, []string{img.ID}, new(images.RemoveOptions).WithForce(true))
		return errors.Join(errs...)
	})
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return "it could not be removed", fmt.Errorf("remove image %s: %w", img, err)
	}
	return "", nil
}

// checks is the first version with `podman system check`.
func checks() semver.Version { return semver.Version{Major: 5, Minor: 2} }

// Verify has Podman itself check its storage, and changes nothing: its check has taken whole
// images for damaged. It reads every layer, which takes minutes on a slow disk. Podman
// before 5.2 has none; then nothing is found.
func (r *Runtime) Verify(ctx context.Context) (all []runtime.Damage, err error) {
	info, err := r.Info(ctx)
	if err != nil {
		return nil, err
	}
	if v, err := parseVersion(info); err != nil || v.LT(checks()) {
		return nil, err
	}
	// https://docs.podman.io/en/latest/_static/api.html, SystemCheckLibpod; what is needed of the answer.
	type report struct{ Layers, Images, Containers map[string][]string }
	found, err := call(ctx, r.engine, func(ctx context.Context) (out report, err error) {
		conn, err := bindings.GetClient(ctx)
		if err != nil {
			return out, err
		}
		resp, err := conn.DoRequest(ctx, nil, http.MethodPost, "/system/check", url.Values{"quick": {"true"}}, nil)
		if err != nil {
			return out, err
		}
		defer resp.Body.Close()
		return out, resp.Process(&out)
	})
	if err != nil {
		return nil, fmt.Errorf("have Podman check its storage: %w", err)
	}
	for _, part := range []struct {
		what  string
		found map[string][]string
	}{{"image", found.Images}, {"layer", found.Layers}, {"container", found.Containers}} {
		for _, id := range slices.Sorted(maps.Keys(part.found)) {
			all = append(all, runtime.Damage{
				What: fmt.Sprintf("%s %s: %s", part.what, id[:min(12, len(id))], strings.Join(part.found[id], "; ")),
				Done: "Podman's own check says so, and nothing was changed",
				Cure: "`podman system check --quick` tells more, and with --repair removes damaged images that are not in use; then pull or load them again",
			})
		}
	}
	return all, nil
}
