package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// A controller that failed is started again after firstBackoff, twice as long
	// each time up to maxBackoff; one that ran for resetAfter begins anew.
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	resetAfter   = 2 * time.Minute
)

// controller is one loop. run makes its objects, and blocks until ctx ends or it fails.
type controller struct {
	name string // for people
	user string // whose rights it has: a service account in kube-system
	run  func(ctx context.Context, e *env) error
	// rare names a kind of which most clusters have none: run is called when the
	// first is there, so that they pay for no more than a watch. nil: at once.
	rare func(f informers.SharedInformerFactory) cache.SharedIndexInformer
	// counts says which objects of the rare kind count. nil: all.
	counts func(obj any) bool
}

// env is what one life of one controller gets.
type env struct {
	*Term
	cfg    Config
	config *rest.Config
	client kubernetes.Interface
	logger *slog.Logger
	began  time.Time // of the term
}

// Run runs every controller until ctx ends, and returns nil then, when all have
// ended and their event handlers are gone. A controller that fails, panics or
// ends too early is started again with backoff; the others go on.
//
// Kubernetes' controllers run workers of their own, in which a panic ends the
// process unless k8s.io/apimachinery/pkg/util/runtime.ReallyCrash is false;
// that is a setting of the process and so cmd's to make.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return err
	}
	return runAll(ctx, cfg, append(stock(), ours()...))
}

func runAll(ctx context.Context, cfg Config, controllers []controller) error {
	began := time.Now()
	var running sync.WaitGroup
	for _, c := range controllers {
		running.Go(func() { supervise(ctx, cfg, c, began) })
	}
	running.Wait()
	return nil
}

// supervise keeps one controller alive until ctx ends.
func supervise(ctx context.Context, cfg Config, c controller, began time.Time) {
	logger := cfg.Logger.With("controller", c.name)
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		start := time.Now()
		err := live(ctx, cfg, c, logger, began)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > resetAfter {
			backoff = firstBackoff
		}
		logger.Error("controller failed, starting it again", "error", err, "after", backoff)
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}

// first waits until there is an object of the kind that counts, or ctx ends.
func (c controller) first(ctx context.Context, cfg Config) error {
	term := NewTerm(cfg.Informers, cfg.StartInformers)
	there := make(chan struct{})
	seen := sync.OnceFunc(func() { close(there) })
	_, err := c.rare(term).AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool { return c.counts == nil || c.counts(obj) },
		Handler:    cache.ResourceEventHandlerFuncs{AddFunc: func(any) { seen() }},
	})
	if err != nil {
		return errors.Join(fmt.Errorf("watch: %w", err), term.Close())
	}
	term.Start(ctx.Done())
	select {
	case <-there:
		return term.Close()
	case <-ctx.Done():
		return errors.Join(ctx.Err(), term.Close())
	}
}

// live is one life of a controller. What it added to the informers goes with it.
func live(ctx context.Context, cfg Config, c controller, logger *slog.Logger, began time.Time) (err error) {
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(logger.Handler())))
	if c.rare != nil {
		if err := c.first(ctx, cfg); err != nil {
			cancel()
			return err
		}
	}
	term := NewTerm(cfg.Informers, cfg.StartInformers)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		cancel()
		err = errors.Join(err, term.Close())
	}()
	config := cfg.ClientConfig("system:serviceaccount:kube-system:"+c.user, "system:serviceaccounts", "system:serviceaccounts:kube-system")
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	e := &env{Term: term, cfg: cfg, config: config, client: client, logger: logger, began: began}
	if err := c.run(ctx, e); err != nil {
		return err
	}
	return errors.New("it ended before the term did")
}
