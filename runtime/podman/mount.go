package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/containers/podman/v4/pkg/bindings"
	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/rundigitalplatform/rookery/runtime"
)

// MountImage implements runtime.Runtime by a container of the sandbox that is never
// started: Podman's API mounts containers, not images. It is told from the sandbox's own by
// having no labelContainer, and keeps the image from being removed.
func (r *Runtime) MountImage(ctx context.Context, sandboxID, ref string) (string, error) {
	path, err := r.mountImage(ctx, sandboxID, ref)
	if err != nil {
		return "", fmt.Errorf("mount image %s: %w", ref, err)
	}
	return path, nil
}

func (r *Runtime) mountImage(ctx context.Context, sandboxID, ref string) (string, error) {
	in, err := r.home(ctx, sandboxID)
	if err != nil {
		return "", err
	}
	img, err := r.Image(ctx, ref)
	if err != nil {
		return "", err
	}
	holder := holderSpec(r.owner, in, img.ID)
	_, err = call(ctx, r.engineOf(in.handler), func(ctx context.Context) (string, error) {
		report, err := containers.CreateWithSpec(ctx, holder, nil)
		return report.ID, err
	})
	if err != nil && !errors.Is(err, runtime.ErrExists) {
		return "", err
	}
	// A container that is mounted already says where, and counts one user more, who never leaves:
	// what removes it does not ask.
	return call(ctx, r.engine, func(ctx context.Context) (string, error) { return mountContainer(ctx, holder.Name) })
}

// mountContainer is containers.Mount, which does not understand the answer of
// Podman before 4.4: the path and a newline, not JSON.
func mountContainer(ctx context.Context, name string) (string, error) {
	client, err := bindings.GetClient(ctx)
	if err != nil {
		return "", err
	}
	resp, err := client.DoRequest(ctx, nil, http.MethodPost, "/containers/%s/mount", nil, nil, name)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if !resp.IsSuccess() {
		return "", resp.Process(nil)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	path := strings.TrimSpace(string(body))
	if strings.HasPrefix(path, `"`) {
		err = json.Unmarshal(body, &path)
	}
	if err == nil && !filepath.IsAbs(path) {
		err = fmt.Errorf("podman mounted it at %q, which is no path", path)
	}
	return path, err
}
