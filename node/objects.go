package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// objects reads the ConfigMaps and Secrets that pods refer to. They are asked for
// when needed and shared for a moment, so that many pods of one Deployment ask
// once. Each pod's are also kept in its directory: where the API does not answer,
// a pod starts with what it had.
type objects struct {
	client kubernetes.Interface
	dir    func(uid types.UID) string

	mu    sync.Mutex
	cache map[string]cached
}

type cached struct {
	object any
	err    error // NotFound
	until  time.Time
}

// objectLife is how long an answer serves: longer than a burst of starts, shorter
// than a person waits who changed a ConfigMap and restarts a pod.
const objectLife = 2 * time.Second

func newObjects(client kubernetes.Interface, dir func(types.UID) string) *objects {
	return &objects{client: client, dir: dir, cache: map[string]cached{}}
}

// podObjects is spec.Sources for one pod.
type podObjects struct {
	*objects
	ctx context.Context
	uid types.UID
}

func (o *objects) forPod(ctx context.Context, uid types.UID) podObjects {
	return podObjects{o, ctx, uid}
}

// ConfigMap implements spec.Sources.
func (p podObjects) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	return get(p, "configmap", namespace, name, func() (*v1.ConfigMap, error) {
		return p.client.CoreV1().ConfigMaps(namespace).Get(p.ctx, name, metav1.GetOptions{})
	})
}

// Secret implements spec.Sources.
func (p podObjects) Secret(namespace, name string) (*v1.Secret, error) {
	return get(p, "secret", namespace, name, func() (*v1.Secret, error) {
		return p.client.CoreV1().Secrets(namespace).Get(p.ctx, name, metav1.GetOptions{})
	})
}

func get[T any](p podObjects, kind, namespace, name string, ask func() (*T, error)) (*T, error) {
	key := kind + "/" + namespace + "/" + name
	now := time.Now()
	p.mu.Lock()
	have, ok := p.cache[key]
	p.mu.Unlock()
	if !ok || now.After(have.until) {
		object, err := ask()
		if err != nil && !apierrors.IsNotFound(err) {
			kept, keptErr := load[T](p.keptPath(kind, name))
			if keptErr != nil {
				return nil, errors.Join(err, keptErr)
			}
			if kept == nil {
				return nil, err
			}
			return kept, nil
		}
		have = cached{object, err, now.Add(objectLife)}
		p.mu.Lock()
		for k, c := range p.cache {
			if now.After(c.until) {
				delete(p.cache, k)
			}
		}
		p.cache[key] = have
		p.mu.Unlock()
	}
	if have.err != nil {
		return nil, have.err
	}
	object := have.object.(*T)
	if err := p.keep(kind, name, object); err != nil {
		return nil, err
	}
	return object, nil
}

func (p podObjects) keptPath(kind, name string) string {
	return filepath.Join(p.dir(p.uid), "objects", kind+"-"+name+".json")
}

// keep writes the object for a time without API, unless it is there already.
func (p podObjects) keep(kind, name string, object any) error {
	data, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kind, err)
	}
	path := p.keptPath(kind, name)
	if have, err := os.ReadFile(path); err == nil && string(have) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep %s: %w", kind, err)
	}
	if err := replaceFile(path, data); err != nil {
		return fmt.Errorf("keep %s: %w", kind, err)
	}
	return nil
}

func load[T any](path string) (*T, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kept object: %w", err)
	}
	out := new(T)
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("read kept object: %w", err)
	}
	return out, nil
}
