package ingress

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// challengeEvery bounds how often strangers, who may ask for any token, have the API read.
	challengeEvery = time.Second
	// challengeTimeout is for one reading.
	challengeTimeout = 5 * time.Second
)

// challenges are what every peer answers issuers. They are read from the API, for this peer's own
// memory may be a moment behind the leader, who has told the issuer to ask. Who asks waits for a
// reading that begins after that, which is one for all who do.
type challenges struct {
	client kubernetes.Interface

	mu   sync.Mutex
	next *reading  // that has not begun; nil: none is to come
	last time.Time // when one began
}

type reading struct {
	done      chan struct{} // closed when what follows is set
	responses map[string]string
	err       error
}

// response is the one to a token; "" if there is none.
func (c *challenges) response(ctx context.Context, token string) (string, error) {
	c.mu.Lock()
	r := c.next
	if r == nil {
		r = &reading{done: make(chan struct{})}
		c.next = r
		time.AfterFunc(time.Until(c.last.Add(challengeEvery)), func() { c.read(r) })
	}
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.responses[token], r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (c *challenges) read(r *reading) {
	c.mu.Lock()
	c.next, c.last = nil, time.Now()
	c.mu.Unlock()
	defer close(r.done)
	ctx, cancel := context.WithTimeout(context.Background(), challengeTimeout)
	defer cancel()
	m, err := c.client.CoreV1().ConfigMaps(acmeNamespace).Get(ctx, acmeChallenges, metav1.GetOptions{})
	switch {
	case err == nil:
		r.responses = m.Data
	case !apierrors.IsNotFound(err):
		r.err = err
	}
}
