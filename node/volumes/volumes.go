// Package volumes puts on disk what a pod's containers find mounted: its volumes,
// /etc/hosts, /etc/hostname, /etc/resolv.conf and the files for termination messages.
//
// All of a pod's files are under DIR/UID and go with it. Contents of ConfigMaps,
// Secrets, tokens and the downward API are replaced atomically when they change.
// Reading the objects and asking for tokens is the caller's part (Sources, Tokens);
// so is deciding when to set up again. Package node calls it.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// Tokens asks the API for a service account token bound to the pod.
type Tokens interface {
	Token(ctx context.Context, pod *v1.Pod, audience string, life time.Duration) (token string, expires time.Time, err error)
}

// Manager owns the directory of all pods' files. Its methods may be called
// concurrently for different pods, one at a time for the same pod.
type Manager struct {
	dir    string
	tokens Tokens

	mu     sync.Mutex
	issued map[tokenKey]issuedToken
}

// New returns a manager of the pods' directories under dir, which need not exist yet.
func New(dir string, tokens Tokens) *Manager {
	return &Manager{dir: dir, tokens: tokens, issued: map[tokenKey]issuedToken{}}
}

// PodDir is where everything of a pod is.
func (m *Manager) PodDir(uid types.UID) string { return filepath.Join(m.dir, string(uid)) }

func (m *Manager) volumeDir(uid types.UID, name string) string {
	return filepath.Join(m.PodDir(uid), "volumes", name)
}

// Setup makes all volumes of the pod ready, and updates them if they are. next is
// when it should be called again for a token to be renewed; zero: never for that.
// It is idempotent. An error names the volume, in the user's words.
func (m *Manager) Setup(ctx context.Context, pod *v1.Pod, info spec.PodInfo, src spec.Sources) (next time.Time, err error) {
	if err := os.MkdirAll(filepath.Join(m.PodDir(pod.UID), "volumes"), 0o700); err != nil {
		return time.Time{}, fmt.Errorf("create pod directory: %w", err)
	}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		due, err := m.setup(ctx, pod, v, info, src)
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", v.Name, err))
		}
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next, errors.Join(errs...)
}

func (m *Manager) setup(ctx context.Context, pod *v1.Pod, v *v1.Volume, info spec.PodInfo, src spec.Sources) (time.Time, error) {
	switch {
	case v.EmptyDir != nil:
		return time.Time{}, m.emptyDir(pod, v, info.Allocatable.Memory().Value())
	case v.Image != nil:
		return time.Time{}, nil // mounted by the engine, container by container
	case v.HostPath != nil:
		return time.Time{}, hostPath(v.HostPath)
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil:
		return m.project(ctx, pod, v, info, src)
	case v.PersistentVolumeClaim != nil:
		return time.Time{}, fmt.Errorf("persistentVolumeClaim %q: persistent volumes are not supported yet; use hostPath or emptyDir", v.PersistentVolumeClaim.ClaimName)
	}
	return time.Time{}, fmt.Errorf("this kind of volume is not supported; use emptyDir, hostPath, configMap, secret, downwardAPI, projected or image")
}

// Cleanup unmounts and removes everything of a pod. Idempotent.
func (m *Manager) Cleanup(uid types.UID) error {
	m.mu.Lock()
	for k := range m.issued {
		if k.uid == uid {
			delete(m.issued, k)
		}
	}
	m.mu.Unlock()
	if err := unmountBelow(m.PodDir(uid)); err != nil {
		return err // removing would empty what is mounted
	}
	if err := os.RemoveAll(m.PodDir(uid)); err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	return nil
}

// Pods lists the pods that have a directory.
func (m *Manager) Pods() ([]types.UID, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pods directory: %w", err)
	}
	var out []types.UID
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, types.UID(e.Name()))
		}
	}
	return out, nil
}
