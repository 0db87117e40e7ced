package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	// showErrImagePull is for how long the first reason shows before ImagePullBackOff does.
	showErrImagePull = 2 * time.Second
)

// ensureImage makes an image local that a container needs, as its own or in a
// volume, as the pull policy says.
func (w *worker) ensureImage(ctx context.Context, pod *v1.Pod, container, ref string, policy v1.PullPolicy) (runtime.Image, *waiting) {
	if _, _, _, err := parsers.ParseImageName(ref); err != nil {
		w.containerEvent(container, v1.EventTypeWarning, "InspectFailed", "Failed to apply default image tag %q: %v", ref, err)
		return runtime.Image{}, &waiting{"InvalidImageName", fmt.Sprintf("Failed to apply default image tag %q: %v", ref, err), retryConfig}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	image, err := w.a.images.Lookup(call, ref)
	cancel()
	present := err == nil
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		message := fmt.Sprintf("Failed to inspect image %q: %v", ref, err)
		w.containerEvent(container, v1.EventTypeWarning, "InspectFailed", "%s", message)
		return runtime.Image{}, &waiting{"ImageInspectError", message, retryConfig}
	}
	if onlyLocal(ref) {
		if present {
			w.containerEvent(container, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine", ref)
			return image, nil
		}
		message := fmt.Sprintf("image %q is not on this peer%s: load it with `rookery image load FILE`", ref, w.a.lostImage(ref))
		return runtime.Image{}, w.pullFailed(container, ref, message, retryConfig)
	}
	logins, missing := w.logins(ctx, pod, ref)
	if present && policy != v1.PullAlways && w.a.images.Allowed(ref, image.ID, logins) {
		w.containerEvent(container, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine and can be accessed by the pod", ref)
		return image, nil
	}
	if policy == v1.PullNever { // nor is it told that the image is here for others
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", ref)
		w.containerEvent(container, v1.EventTypeWarning, "ErrImageNeverPull", "%s", message)
		return runtime.Image{}, &waiting{"ErrImageNeverPull", message, retryConfig}
	}
	image, fault := w.pull(ctx, container, ref, logins)
	if fault != nil && len(missing) > 0 && ctx.Err() == nil {
		w.event(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", "))
	}
	return image, fault
}

// onlyLocal: nothing is ever fetched from a registry called localhost.
func onlyLocal(ref string) bool {
	names := runtime.Names(ref)
	return len(names) > 0 && strings.HasPrefix(names[len(names)-1], "localhost/")
}

func (w *worker) pull(ctx context.Context, container, ref string, logins []credentialprovider.TrackedAuthConfig) (runtime.Image, *waiting) {
	w.containerEvent(container, v1.EventTypeNormal, "Pulling", "Pulling image %q", ref)
	began := time.Now()
	pulled, err := w.a.images.Pull(ctx, ref, logins)
	if ctx.Err() != nil {
		return runtime.Image{}, &waiting{"ErrImagePull", ctx.Err().Error(), 0}
	}
	if err != nil {
		w.mu.Lock()
		tries := w.memory[container].Tries
		w.mu.Unlock()
		return runtime.Image{}, w.pullFailed(container, ref, err.Error(), min(firstPullRetry<<min(tries, 10), lastPullRetry))
	}
	w.containerEvent(container, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
		ref, pulled.Took.Truncate(time.Millisecond), time.Since(began).Truncate(time.Millisecond), pulled.Size)
	return pulled.Image, nil
}

// pullFailed tells the failure, and a moment later that the next try is held back.
func (w *worker) pullFailed(container, ref, message string, retry time.Duration) *waiting {
	w.containerEvent(container, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", ref, message)
	w.containerEvent(container, v1.EventTypeWarning, "Failed", "Error: ErrImagePull")
	time.AfterFunc(showErrImagePull, func() {
		w.mu.Lock()
		m := w.memory[container]
		held := !w.closed && m.Waiting != nil && m.Waiting.Reason == "ErrImagePull" && w.busy[container] == nil
		if held {
			m.Waiting = &v1.ContainerStateWaiting{
				Reason:  "ImagePullBackOff",
				Message: fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %s", ref, message),
			}
		}
		w.mu.Unlock()
		if held {
			w.containerEvent(container, v1.EventTypeNormal, "BackOff", "Back-off pulling image %q", ref)
			w.containerEvent(container, v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
			w.kick()
		}
	})
	return &waiting{"ErrImagePull", message, retry}
}

// logins are the pod's for the image's registry, and the names of its secrets that
// are not there. A service account's secrets are in the pod: the API puts them there.
func (w *worker) logins(ctx context.Context, pod *v1.Pod, ref string) (logins []credentialprovider.TrackedAuthConfig, missing []string) {
	var pullSecrets []v1.Secret
	objects := w.a.objects.forPod(ctx, pod.UID)
	for _, to := range pod.Spec.ImagePullSecrets {
		if to.Name == "" {
			continue
		}
		secret, err := objects.Secret(pod.Namespace, to.Name)
		if err != nil {
			if !apierrors.IsNotFound(err) {
				w.a.log.Warn("get image pull secret", "pod", w.name(), "secret", to.Name, "error", err)
			}
			missing = append(missing, to.Name)
			continue
		}
		pullSecrets = append(pullSecrets, *secret)
	}
	keyring, err := secrets.MakeDockerKeyring(pullSecrets, &credentialprovider.BasicDockerKeyring{})
	if err != nil {
		w.event(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "An image pull secret cannot be read: %v", err)
		return nil, missing
	}
	logins, _ = keyring.Lookup(repository(ref)) // not found: none
	return logins, missing
}

func repository(image string) string {
	name, _, _, err := parsers.ParseImageName(image)
	if err != nil {
		return image
	}
	return name
}
