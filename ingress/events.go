package ingress

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// patience is how long a problem lasts before it is told: what is applied together comes one after the other.
	patience = 3 * time.Second
	// silence is how long a problem that comes and goes is told once.
	silence = 10 * time.Minute
)

// complaints makes Events of what is wrong with Ingresses: of each cause once for as long as it lasts.
type complaints struct {
	client kubernetes.Interface
	kick   func(any) // asks for another update
	known  map[string]*complaint
}

type complaint struct{ since, told time.Time }

// update takes all that is wrong now.
func (c *complaints) update(ctx context.Context, problems []problem) error {
	now := time.Now()
	var errs []error
	var next time.Duration
	lasts := map[string]bool{}
	for _, p := range problems {
		key := string(p.ingress.UID) + " " + p.message
		lasts[key] = true
		k := c.known[key]
		if k == nil {
			k = &complaint{since: now}
			c.known[key] = k
		}
		switch wait := k.since.Add(patience).Sub(now); {
		case !k.told.IsZero():
		case wait > 0:
			next = max(next, wait)
		default:
			if err := tell(ctx, c.client, p); err != nil {
				errs = append(errs, err)
				continue
			}
			k.told = now
		}
	}
	for key, k := range c.known {
		if !lasts[key] && now.Sub(k.told) > silence {
			delete(c.known, key)
		}
	}
	if next > 0 {
		time.AfterFunc(next, func() { c.kick(nil) })
	}
	return errors.Join(errs...)
}

// tell makes an Event of a problem.
func tell(ctx context.Context, client kubernetes.Interface, p problem) error {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", p.ingress.Name, now.UnixNano()), Namespace: p.ingress.Namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Ingress", APIVersion: "networking.k8s.io/v1", Namespace: p.ingress.Namespace, Name: p.ingress.Name, UID: p.ingress.UID},
		Type:           corev1.EventTypeWarning, Reason: "NotServed", Message: p.message,
		Source: corev1.EventSource{Component: "rookery-ingress"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	if _, err := client.CoreV1().Events(p.ingress.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make event: %w", err)
	}
	return nil
}
