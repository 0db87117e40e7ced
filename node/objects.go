package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	// read is told which version of an object a pod is given; "": that there is none.
	read func(key objectKey, uid types.UID, version string)

	mu    sync.Mutex
	cache map[objectKey]cached
	seq   int // of news, to see one that came while the API was asked
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
	return &objects{client: client, dir: dir, cache: map[objectKey]cached{}, read: func(objectKey, types.UID, string) {}}
}

// news takes in what a watch says of an object; nil: it is gone. Pods that ask next
// get this, and not what the API was asked for before.
func (o *objects) news(key objectKey, object any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	switch {
	case key.kind == trustBundleKind:
		maps.DeleteFunc(o.cache, func(k objectKey, _ cached) bool { return k.kind == trustBundleKind })
	case object == nil:
		gone := apierrors.NewNotFound(schema.GroupResource{Resource: key.kind + "s"}, key.name)
		o.cache[key] = cached{err: gone, until: time.Now().Add(objectLife)}
	default:
		o.cache[key] = cached{object: object, until: time.Now().Add(objectLife)}
	}
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
	return get(p, configMapKind, namespace, name, func() (*v1.ConfigMap, error) {
		return p.client.CoreV1().ConfigMaps(namespace).Get(p.ctx, name, metav1.GetOptions{})
	})
}

// Secret implements spec.Sources.
func (p podObjects) Secret(namespace, name string) (*v1.Secret, error) {
	return get(p, secretKind, namespace, name, func() (*v1.Secret, error) {
		return p.client.CoreV1().Secrets(namespace).Get(p.ctx, name, metav1.GetOptions{})
	})
}

func get[T any](p podObjects, kind, namespace, name string, ask func() (*T, error)) (*T, error) {
	key := objectKey{kind, namespace, name}
	now := time.Now()
	p.mu.Lock()
	have, ok := p.cache[key]
	seq := p.seq
	p.mu.Unlock()
	if !ok || now.After(have.until) {
		object, err := allowed(p.ctx, ask)
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
		if p.seq == seq {
			p.cache[key] = have
		}
		p.mu.Unlock()
	}
	if have.err != nil {
		p.read(key, p.uid, "")
		return nil, have.err
	}
	object := have.object.(*T)
	if m, ok := have.object.(metav1.Object); ok {
		p.read(key, p.uid, m.GetResourceVersion())
	}
	if err := p.keep(kind, name, object); err != nil {
		return nil, err
	}
	return object, nil
}

// allowed asks once more, a moment later, what is forbidden: the API may hear of a
// pod on this node just after the agent does, and allows nothing of it before.
func allowed[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for wait := 10 * time.Millisecond; ; wait *= 4 {
		answer, err := ask()
		if !apierrors.IsForbidden(err) || wait > time.Second {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(wait):
		}
	}
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
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
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
