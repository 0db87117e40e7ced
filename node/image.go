package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
	"k8s.io/kubernetes/pkg/util/parsers"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Pulls that fail are tried again after 10 s, doubling to 5 min, as in kubelet. An
// image that only a person can bring is looked for every 10 s: looking is cheap.
const (
	firstPullRetry = 10 * time.Second
	lastPullRetry  = 5 * time.Minute
	pullTimeout    = 30 * time.Minute
	// showErrImagePull is for how long the first reason shows before ImagePullBackOff does.
	showErrImagePull = 2 * time.Second
)

// ensureImage makes the image local as the pull policy says.
func (w *worker) ensureImage(ctx context.Context, pod *v1.Pod, c *v1.Container) (runtime.Image, *waiting) {
	if _, _, _, err := parsers.ParseImageName(c.Image); err != nil {
		w.containerEvent(c.Name, v1.EventTypeWarning, "InspectFailed", "Failed to apply default image tag %q: %v", c.Image, err)
		return runtime.Image{}, &waiting{"InvalidImageName", fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err), retryConfig}
	}
	image, err := w.a.images.lookup(ctx, w.a.cfg.Runtime, c.Image)
	present := err == nil
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return runtime.Image{}, &waiting{"ImageInspectError", fmt.Sprintf("Failed to inspect image %q: %v", c.Image, err), retryConfig}
	}
	byHand := onlyLocal(c.Image)
	switch {
	case present && (byHand || c.ImagePullPolicy != v1.PullAlways):
		w.containerEvent(c.Name, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.Image)
		return image, nil
	case byHand:
		message := fmt.Sprintf("image %q is not on this peer: load it with `rookery image load FILE`", c.Image)
		return runtime.Image{}, w.pullFailed(c, message, retryConfig)
	case c.ImagePullPolicy == v1.PullNever:
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		w.containerEvent(c.Name, v1.EventTypeWarning, "ErrImageNeverPull", "%s", message)
		return runtime.Image{}, &waiting{"ErrImageNeverPull", message, retryConfig}
	}
	return w.pull(ctx, pod, c)
}

// imageMemory spares the engine to be asked for one image by every replica that starts.
type imageMemory struct {
	mu   sync.Mutex
	seen map[string]seenImage // by reference
}

type seenImage struct {
	runtime.Image
	at time.Time
}

// imageFresh is for how long what the engine said of a local image is taken for true.
const imageFresh = 5 * time.Second

// lookup returns a local image by its reference, ErrNotFound if it is not here.
func (m *imageMemory) lookup(ctx context.Context, rt runtime.Runtime, ref string) (runtime.Image, error) {
	m.mu.Lock()
	have, ok := m.seen[ref]
	m.mu.Unlock()
	if ok && time.Since(have.at) < imageFresh {
		return have.Image, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	image, err := rt.Image(call, ref)
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.seen, func(_ string, s seenImage) bool { return time.Since(s.at) >= imageFresh })
	if err == nil {
		m.seen[ref] = seenImage{image, time.Now()}
	}
	return image, err
}

func (m *imageMemory) forget(ref string) {
	m.mu.Lock()
	delete(m.seen, ref)
	m.mu.Unlock()
}

// onlyLocal: nothing is ever fetched from a registry called localhost.
func onlyLocal(ref string) bool {
	names := runtime.Names(ref)
	return len(names) > 0 && strings.HasPrefix(names[len(names)-1], "localhost/")
}

func (w *worker) pull(ctx context.Context, pod *v1.Pod, c *v1.Container) (runtime.Image, *waiting) {
	select {
	case w.a.pulls <- struct{}{}:
		defer func() { <-w.a.pulls }()
	case <-ctx.Done():
		return runtime.Image{}, &waiting{"ErrImagePull", ctx.Err().Error(), 0}
	}
	w.containerEvent(c.Name, v1.EventTypeNormal, "Pulling", "Pulling image %q", c.Image)
	began := time.Now()
	call, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	var image runtime.Image
	var err error
	for _, auth := range w.logins(ctx, pod, c.Image) {
		if image, err = w.a.cfg.Runtime.PullImage(call, c.Image, auth); err == nil {
			w.a.images.forget(c.Image)
			w.containerEvent(c.Name, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s. Image size: %d bytes.", c.Image, time.Since(began).Round(time.Millisecond), image.Size)
			return image, nil
		}
	}
	if ctx.Err() != nil {
		return runtime.Image{}, &waiting{"ErrImagePull", ctx.Err().Error(), 0}
	}
	w.mu.Lock()
	tries := w.memory[c.Name].Tries
	w.mu.Unlock()
	return runtime.Image{}, w.pullFailed(c, err.Error(), min(firstPullRetry<<min(tries, 10), lastPullRetry))
}

// pullFailed tells the failure, and a moment later that the next try is held back.
func (w *worker) pullFailed(c *v1.Container, message string, retry time.Duration) *waiting {
	w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", c.Image, message)
	w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: ErrImagePull")
	name, image := c.Name, c.Image
	time.AfterFunc(showErrImagePull, func() {
		w.mu.Lock()
		m := w.memory[name]
		held := !w.closed && m.Waiting != nil && m.Waiting.Reason == "ErrImagePull" && w.busy[name] == nil
		if held {
			m.Waiting = &v1.ContainerStateWaiting{
				Reason:  "ImagePullBackOff",
				Message: fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %s", image, message),
			}
		}
		w.mu.Unlock()
		if held {
			w.containerEvent(name, v1.EventTypeNormal, "BackOff", "Back-off pulling image %q", image)
			w.containerEvent(name, v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
			w.kick()
		}
	})
	return &waiting{"ErrImagePull", message, retry}
}

// logins are what to try with the registry, without a login last.
func (w *worker) logins(ctx context.Context, pod *v1.Pod, image string) []*runtime.RegistryAuth {
	var pullSecrets []v1.Secret
	objects := w.a.objects.forPod(ctx, pod.UID)
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret, err := objects.Secret(pod.Namespace, ref.Name)
		if err != nil {
			w.event(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "Unable to retrieve image pull secret %s: %v; the image pull may not succeed.", ref.Name, err)
			continue
		}
		pullSecrets = append(pullSecrets, *secret)
	}
	var out []*runtime.RegistryAuth
	keyring, err := secrets.MakeDockerKeyring(pullSecrets, &credentialprovider.BasicDockerKeyring{})
	if err != nil {
		w.event(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "An image pull secret cannot be read: %v", err)
	} else if found, ok := keyring.Lookup(repository(image)); ok {
		for _, login := range found {
			out = append(out, &runtime.RegistryAuth{Username: login.Username, Password: login.Password})
		}
	}
	return append(out, nil)
}

func repository(image string) string {
	name, _, _, err := parsers.ParseImageName(image)
	if err != nil {
		return image
	}
	return name
}
