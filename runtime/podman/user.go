package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/opencontainers/runc/libcontainer/user"
	spec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rundigitalplatform/rookery/runtime"
)

// User implements runtime.Runtime from what the OCI runtime was given, which Podman keeps
// beside the container's log.
func (r *Runtime) User(ctx context.Context, id string) (runtime.User, error) {
	out, err := r.user(ctx, id)
	if err != nil {
		return runtime.User{}, fmt.Errorf("read user of container %s: %w", id, err)
	}
	return out, nil
}

func (r *Runtime) user(ctx context.Context, id string) (runtime.User, error) {
	text, err := r.ociConfig(ctx, id)
	if err != nil {
		return runtime.User{}, err
	}
	var config struct{ Process *spec.Process }
	if err := json.Unmarshal(text, &config); err != nil {
		return runtime.User{}, fmt.Errorf("decode its config.json: %w", err)
	}
	if config.Process == nil {
		return runtime.User{}, errors.New("its config.json names no process")
	}
	u := config.Process.User
	out := runtime.User{UID: int64(u.UID), GID: int64(u.GID)}
	for _, gid := range u.AdditionalGids {
		out.Groups = append(out.Groups, int64(gid))
	}
	return out, nil
}

// ociConfig reads it where Podman usually has it, or where it says, which costs it milliseconds.
func (r *Runtime) ociConfig(ctx context.Context, id string) ([]byte, error) {
	if dir := r.bundles.Load(); dir != nil {
		text, err := os.ReadFile(filepath.Join(*dir, id, "userdata", "config.json"))
		if !errors.Is(err, fs.ErrNotExist) {
			return text, err
		}
	}
	data, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, id, nil)
	})
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(data.OCIConfigPath)
	if errors.Is(err, fs.ErrNotExist) || data.OCIConfigPath == "" {
		return nil, fmt.Errorf("it was never started: %w", runtime.ErrNotFound)
	}
	return text, err
}

// accounts are an image's own lists of users and groups.
type accounts struct{ passwd, group []byte }

// maxAccounts bounds how much of such a list is read.
const maxAccounts = 1 << 20

// identify has c run with the groups that it asks for, where Podman by itself would do
// otherwise: it takes the groups of the image's /etc/group only where User names no group, and
// then it always does.
func (r *Runtime) identify(ctx context.Context, sandboxID string, c *runtime.ContainerSpec) error {
	name, group, named := strings.Cut(c.User, ":")
	if named == !c.ImageGroups || c.User == "" {
		return nil
	}
	if !named && (name == "0" || name == "root") {
		c.User = "0:0" // an image may have no accounts at all
		return nil
	}
	of, err := r.accountsOf(ctx, sandboxID, c.Image)
	if err != nil {
		return fmt.Errorf("look up user %s: %w", name, err)
	}
	found, err := user.GetExecUser(name, nil, bytes.NewReader(of.passwd), bytes.NewReader(of.group))
	if err != nil {
		return fmt.Errorf("look up user %s: %w", name, err)
	}
	if !named {
		group = strconv.Itoa(found.Gid)
	} else {
		c.Groups = append([]int64(nil), c.Groups...)
		for _, gid := range found.Sgids {
			c.Groups = append(c.Groups, int64(gid))
		}
	}
	c.User = name + ":" + group
	return nil
}

// forgetAccounts forgets those of images that are gone.
func (r *Runtime) forgetAccounts(here []runtime.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.accounts, func(id string, _ accounts) bool {
		return !slices.ContainsFunc(here, func(image runtime.Image) bool { return image.ID == id })
	})
}

// accountsOf reads an image's accounts once; for that it is mounted into the sandbox.
func (r *Runtime) accountsOf(ctx context.Context, sandboxID, ref string) (accounts, error) {
	image, err := r.Image(ctx, ref)
	if err != nil {
		return accounts{}, err
	}
	r.mu.Lock()
	have, ok := r.accounts[image.ID]
	r.mu.Unlock()
	if ok {
		return have, nil
	}
	path, err := r.MountImage(ctx, sandboxID, image.ID)
	if err != nil {
		return accounts{}, err
	}
	root, err := os.OpenRoot(path) // a link in the image leads nowhere else
	if err != nil {
		return accounts{}, err
	}
	defer root.Close()
	for name, to := range map[string]*[]byte{"etc/passwd": &have.passwd, "etc/group": &have.group} {
		file, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return accounts{}, err
		}
		*to, err = io.ReadAll(io.LimitReader(file, maxAccounts))
		file.Close() // only read from
		if err != nil {
			return accounts{}, err
		}
	}
	r.mu.Lock()
	r.accounts[image.ID] = have
	r.mu.Unlock()
	return have, nil
}
