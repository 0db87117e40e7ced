package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// keep is how long an agent's answer serves others: autoscalers and dashboards ask in
	// bursts, and agents themselves take a sample only every five seconds.
	keep = 5 * time.Second
	// patience bounds the wait for an agent: a second for its first window, and three to
	// find out that it cannot be reached.
	patience = 4 * time.Second
	// maxAnswer of an agent: a hundred pods take 50 kB.
	maxAnswer = 8 << 20
)

// agents asks the agents of nodes for one thing, each at most once in a while.
type agents[T any] struct {
	cfg  Config
	path string

	mu      sync.Mutex
	answers map[string]*answer[T] // by node
}

// answer is what an agent said, or will have said when done is closed. It is shared:
// nobody may change it.
type answer[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func newAgents[T any](cfg Config, path string) *agents[T] {
	return &agents[T]{cfg: cfg, path: path, answers: map[string]*answer[T]{}}
}

// ask returns what the agents of these nodes say, by node, without those that are not
// alive or do not answer.
func (a *agents[T]) ask(ctx context.Context, nodes []string) (map[string]*T, error) {
	begun := map[string]*answer[T]{}
	for _, node := range nodes {
		if a.cfg.Alive(node) {
			begun[node] = a.begin(node)
		}
	}
	out := map[string]*T{}
	for node, ans := range begun {
		select {
		case <-ans.done:
		case <-ctx.Done():
			return nil, apierrors.NewTimeoutError("the agents of nodes did not answer in time", 0)
		}
		if ans.err == nil {
			out[node] = &ans.value
		}
	}
	return out, nil
}

// begin returns the present answer, which may be under way.
func (a *agents[T]) begin(node string) *answer[T] {
	a.mu.Lock()
	defer a.mu.Unlock()
	ans := a.answers[node]
	if ans == nil {
		ans = &answer[T]{done: make(chan struct{})}
		a.answers[node] = ans
		go a.fetch(node, ans)
	}
	return ans
}

// fetch outlives the request that caused it: others may wait for it too. A failure is
// kept as long as an answer, so that a peer that hangs is not waited for each time.
func (a *agents[T]) fetch(node string, ans *answer[T]) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ans.err = a.get(ctx, node, &ans.value)
	if ans.err != nil {
		a.cfg.Logger.Warn("usage of a peer is missing", "peer", node, "error", ans.err)
	}
	close(ans.done)
	time.AfterFunc(keep, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.answers, node)
	})
}

func (a *agents[T]) get(ctx context.Context, node string, into *T) error {
	at, transport, err := a.cfg.Agent(ctx, node)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.JoinPath(a.path).String(), nil)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("agent answered %s: %.200s", resp.Status, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read agent's answer: %w", err)
	}
	return nil
}
