package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	ktesting "k8s.io/client-go/testing"
)

const filesPod = `
metadata: {name: a, labels: {tier: one}}
spec:
  containers:
  - {name: web, image: "localhost/hello:1", imagePullPolicy: IfNotPresent}
  volumes:
  - {name: c, configMap: {name: c}}
  - name: p
    projected:
      sources:
      - secret: {name: s}
      - secret: {name: later, optional: true}
      - downwardAPI: {items: [{path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}
  - {name: fixed, configMap: {name: fixed}}
`

func configMap(name, version, value string) *v1.ConfigMap {
	return &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", ResourceVersion: version}, Data: map[string]string{"k": value}}
}

func secretOf(name, version, value string) *v1.Secret {
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", ResourceVersion: version}, Data: map[string][]byte{name: []byte(value)}}
}

func (w *world) file(pod, volume, name string) string {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.agent.volumes.PodDir(types.UID("uid-"+pod)), "volumes", volume, name))
	if err != nil {
		return err.Error()[len(err.Error())-len("no such file or directory"):]
	}
	return string(data)
}

// Files follow what they are made from, at once, and nobody asks for what did not change.
func TestFilesFollow(t *testing.T) {
	fixed := configMap("fixed", "1", "fixed")
	fixed.Immutable = new(true)
	inWorld(t, func(w *world) {
		w.create(filesPod)
		w.sleep(time.Second)
		w.expect("a", "Running ready=True web:running")
		core := w.client.CoreV1()
		update := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			w.settle()
		}
		check := func(volume, name, want string) {
			t.Helper()
			if have := w.file("a", volume, name); have != want {
				t.Errorf("%s/%s is %q, want %q", volume, name, have, want)
			}
		}
		check("c", "k", "one")
		check("p", "later", "no such file or directory")

		_, err := core.ConfigMaps("default").Update(t.Context(), configMap("c", "2", "two"), metav1.UpdateOptions{})
		update(err)
		check("c", "k", "two")
		_, err = core.Secrets("default").Update(t.Context(), secretOf("s", "2", "hush"), metav1.UpdateOptions{})
		update(err)
		check("p", "s", "hush")
		_, err = core.Secrets("default").Create(t.Context(), secretOf("later", "3", "there"), metav1.CreateOptions{})
		update(err)
		check("p", "later", "there")
		update(core.Secrets("default").Delete(t.Context(), "later", metav1.DeleteOptions{}))
		check("p", "later", "no such file or directory")
		pod := w.pod("a")
		pod.Labels["tier"] = "two"
		_, err = core.Pods("default").Update(t.Context(), pod, metav1.UpdateOptions{})
		update(err)
		check("p", "tier", "two")

		// What is deleted stays as it was; what comes in its place is taken.
		update(core.ConfigMaps("default").Delete(t.Context(), "c", metav1.DeleteOptions{}))
		check("c", "k", "two")
		_, err = core.ConfigMaps("default").Create(t.Context(), configMap("c", "4", "three"), metav1.CreateOptions{})
		update(err)
		w.sleep(lastRetry)
		check("c", "k", "three")

		// An immutable object is not looked at again, and without a change nothing is asked.
		w.client.ClearActions()
		changed := configMap("fixed", "5", "other")
		if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("configmaps"), changed, "default"); err != nil {
			t.Fatal(err)
		}
		w.sleep(10 * time.Minute)
		check("fixed", "k", "fixed")
		for _, action := range w.client.Actions() {
			if r := action.GetResource().Resource; r == "configmaps" || r == "secrets" {
				t.Errorf("asked for nothing: %s %s", action.GetVerb(), r)
			}
		}

		// One that was made again in its place is followed when a pod is given it.
		w.create("metadata: {name: b}\nspec: {containers: [{name: web, image: 'localhost/hello:1'}], volumes: [{name: fixed, configMap: {name: fixed}}]}")
		w.sleep(time.Second)
		_, err = core.ConfigMaps("default").Update(t.Context(), configMap("fixed", "6", "loose"), metav1.UpdateOptions{})
		update(err)
		check("fixed", "k", "loose")
		if have := w.file("b", "fixed", "k"); have != "loose" {
			t.Errorf("the second pod has %q", have)
		}

		w.delete("a", 1)
		w.delete("b", 1)
		w.sleep(3 * time.Second)
		if n := len(w.agent.followed.watches); n != 0 {
			t.Errorf("%d objects are still watched", n)
		}
	}, configMap("c", "1", "one"), secretOf("s", "1", "quiet"), fixed)
}

// Two pods with one object have one watch, and both follow.
func TestFilesFollowTogether(t *testing.T) {
	inWorld(t, func(w *world) {
		watches := 0
		w.client.PrependWatchReactor("configmaps", func(ktesting.Action) (bool, apiwatch.Interface, error) { watches++; return false, nil, nil })
		manifest := func(name string) string {
			return `
metadata: {name: ` + name + `}
spec:
  containers: [{name: web, image: "localhost/hello:1"}]
  volumes: [{name: c, configMap: {name: c}}]
`
		}
		w.create(manifest("a"))
		w.sleep(time.Second)
		w.create(manifest("b"))
		w.sleep(time.Second)
		if watches != 1 {
			t.Errorf("%d watches, want 1", watches)
		}
		if _, err := w.client.CoreV1().ConfigMaps("default").Update(context.Background(), configMap("c", "2", "two"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle()
		for _, pod := range []string{"a", "b"} {
			if have := w.file(pod, "c", "k"); have != "two" {
				t.Errorf("%s has %q", pod, have)
			}
		}
	}, configMap("c", "1", "one"))
}
