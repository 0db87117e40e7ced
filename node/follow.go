package node

import (
	"context"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// followed watches the objects that are in the pods' volumes, each once however many
// pods have it, so that a change is in the files as soon as the API tells. An object
// that is immutable is not watched any longer, until a pod is given another in its
// place: it was deleted and made again.
type followed struct {
	client kubernetes.Interface
	// changed is called with the pods whose files are out of date. It must not block.
	changed func([]types.UID)
	// news is called with each object as it is now; nil: it is gone. It must not block.
	news func(key objectKey, object any)

	mu      sync.Mutex
	watches map[objectKey]*watch
}

// objectKey names what is watched; all trust bundles are one, without a name.
type objectKey struct{ kind, namespace, name string }

func (k objectKey) String() string { return k.kind + "/" + k.namespace + "/" + k.name }

const (
	configMapKind   = "configmap"
	secretKind      = "secret"
	trustBundleKind = "clustertrustbundles"
)

// watch is of one object.
type watch struct {
	stop  context.CancelFunc
	again func() // replaces this watch by a new one; called under mu
	fixed string // the version of an immutable object, for which it has stopped; "": it goes on
	// used is the version that each pod's files have: "" for an object that is not
	// there, unread for one that was not read yet.
	used map[types.UID]string
}

const unread = "?"

func newFollowed(client kubernetes.Interface, news func(objectKey, any), changed func([]types.UID)) *followed {
	return &followed{client: client, news: news, changed: changed, watches: map[objectKey]*watch{}}
}

// projected lists what is in the volumes of a pod and may change.
func projected(pod *v1.Pod) map[objectKey]bool {
	out := map[objectKey]bool{}
	configMap := func(name string) { out[objectKey{configMapKind, pod.Namespace, name}] = true }
	secret := func(name string) { out[objectKey{secretKind, pod.Namespace, name}] = true }
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			configMap(v.ConfigMap.Name)
		case v.Secret != nil:
			secret(v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				switch {
				case s.ConfigMap != nil:
					configMap(s.ConfigMap.Name)
				case s.Secret != nil:
					secret(s.Secret.Name)
				case s.ClusterTrustBundle != nil:
					out[objectKey{kind: trustBundleKind}] = true
				}
			}
		}
	}
	return out
}

// pod makes exactly keys what is followed for a pod, from now until ctx ends.
func (f *followed) pod(ctx context.Context, uid types.UID, keys map[objectKey]bool, spawn func(func()) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(uid, keys)
	for key := range keys {
		if f.watches[key] == nil && !f.start(ctx, key, map[types.UID]string{}, spawn) {
			return
		}
		w := f.watches[key]
		if _, ok := w.used[uid]; !ok {
			w.used[uid] = unread
		}
	}
}

// start begins to watch an object, unless the agent is closing. Under mu.
func (f *followed) start(ctx context.Context, key objectKey, used map[types.UID]string, spawn func(func()) bool) bool {
	run, stop := context.WithCancel(ctx)
	w := &watch{stop: stop, used: used}
	w.again = func() { f.start(ctx, key, used, spawn) }
	if !spawn(func() { f.run(run, key, w) }) {
		stop()
		return false
	}
	f.watches[key] = w
	return true
}

// gone ends what is followed for a pod.
func (f *followed) gone(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(uid, nil)
}

// keep ends what is followed for a pod and not among keys. Under mu.
func (f *followed) keep(uid types.UID, keys map[objectKey]bool) {
	for key, w := range f.watches {
		if keys[key] {
			continue
		}
		delete(w.used, uid)
		if len(w.used) == 0 {
			w.stop()
			delete(f.watches, key)
		}
	}
}

// read notes which version of an object a pod is given; nothing if it does not follow it.
func (f *followed) read(key objectKey, uid types.UID, version string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.watches[key]; w != nil {
		if _, ok := w.used[uid]; ok {
			w.used[uid] = version
			if w.fixed != "" && w.fixed != version {
				w.again()
			}
		}
	}
}

// run watches until ctx ends. The informer begins anew, with pauses, what breaks.
func (f *followed) run(ctx context.Context, key objectKey, w *watch) {
	now := func(obj any) {
		if m, ok := obj.(metav1.Object); ok && (key.name == "" || m.GetName() == key.name) {
			f.tell(key, w, m.GetResourceVersion(), obj)
		}
	}
	example, source := f.source(key)
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ObjectType: example, ListerWatcher: cache.ToListWatcherWithWatchListSemantics(source, f.client),
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: now, UpdateFunc: func(_, obj any) { now(obj) },
			DeleteFunc: func(obj any) {
				if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = gone.Obj
				}
				if m, ok := obj.(metav1.Object); ok && (key.name == "" || m.GetName() == key.name) {
					f.tell(key, w, "", nil)
				}
			},
		},
	})
	controller.RunWithContext(ctx)
}

// tell hands on what an object is now.
func (f *followed) tell(key objectKey, w *watch, version string, object any) {
	f.news(key, object)
	var stale []types.UID
	f.mu.Lock()
	for uid, used := range w.used {
		if used != version || key.name == "" || version == "" && object != nil { // no version says nothing
			stale = append(stale, uid)
		}
	}
	if immutable(object) {
		w.fixed = version
		w.stop()
	}
	f.mu.Unlock()
	f.changed(stale)
}

func immutable(object any) bool {
	switch o := object.(type) {
	case *v1.ConfigMap:
		return o.Immutable != nil && *o.Immutable
	case *v1.Secret:
		return o.Immutable != nil && *o.Immutable
	}
	return false
}

// source reads and watches what key names.
func (f *followed) source(key objectKey) (example runtime.Object, _ *cache.ListWatch) {
	one := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, key.name).String()
		return o
	}
	lw := &cache.ListWatch{}
	switch key.kind {
	case configMapKind:
		c := f.client.CoreV1().ConfigMaps(key.namespace)
		lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, one(o)) }
		lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return c.Watch(ctx, one(o))
		}
		return &v1.ConfigMap{}, lw
	case secretKind:
		c := f.client.CoreV1().Secrets(key.namespace)
		lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, one(o)) }
		lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return c.Watch(ctx, one(o))
		}
		return &v1.Secret{}, lw
	}
	c := f.client.CertificatesV1().ClusterTrustBundles()
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) }
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) { return c.Watch(ctx, o) }
	return &certificatesv1.ClusterTrustBundle{}, lw
}
