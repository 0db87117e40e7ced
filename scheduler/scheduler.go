package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// User is the identity that the scheduler acts as, unless ClientConfig is told otherwise.
const User = "system:kube-scheduler"

const (
	// backoff is how long a pod that found no place waits before the next try, the
	// first time and every later time: with a few dozen pods a try costs little,
	// and pods should be placed within a second of a peer's return.
	backoffSeconds = 1
	// parallelism is that of filtering and scoring; upstream's 16 is for thousands of nodes.
	parallelism = 4
	// stopTimeout bounds the wait for the scheduling loop at the end of a term.
	stopTimeout = 10 * time.Second
)

// Config is what a scheduler needs for one term.
type Config struct {
	// ClientConfig gives an in-process client for an identity. Required.
	ClientConfig func(user string, groups ...string) *rest.Config
	// Informers is a factory of this term: its owner removes the event handlers
	// that were registered through it after Run has returned (controller.NewTerm
	// makes such a one). Its Start must start informers for longer than the term. Required.
	Informers informers.SharedInformerFactory
	// Logger is required.
	Logger *slog.Logger
}

// Run schedules pods until ctx ends, and returns nil then. An error means that
// it could not begin; nothing runs on in either case, except requests under
// way, which end with ctx.
func Run(ctx context.Context, cfg Config) error {
	if cfg.ClientConfig == nil || cfg.Informers == nil || cfg.Logger == nil {
		return errors.New("scheduler: ClientConfig, Informers and Logger are required")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(cfg.Logger.Handler()))
	restConfig := cfg.ClientConfig(User)
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("make scheduler client: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record scheduler events: %w", err)
	}
	profiles, err := settings()
	if err != nil {
		return err
	}
	resources := newEmptyResources(cfg.Informers)
	sched, err := scheduler.New(ctx, client, resources, nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithProfiles(profiles...),
		scheduler.WithKubeConfig(restConfig),
		scheduler.WithParallelism(parallelism),
		scheduler.WithPodInitialBackoffSeconds(backoffSeconds),
		scheduler.WithPodMaxBackoffSeconds(backoffSeconds),
	)
	if err != nil {
		return fmt.Errorf("build scheduler: %w", err)
	}
	stopped := loopEnd(sched)
	defer resources.wait()
	defer cancel()
	resources.Start(ctx.Done())
	if err := sync(ctx, resources, sched); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	cfg.Logger.Info("scheduler runs")
	sched.Run(ctx)
	select {
	case <-stopped:
	case <-time.After(stopTimeout):
		cfg.Logger.Warn("scheduling loop has not ended in time")
	}
	return nil
}

// sync waits for the caches and for the scheduler to have heard all that is in
// them, so that the first pod is not placed on a half-known cluster.
func sync(ctx context.Context, f informers.SharedInformerFactory, sched *scheduler.Scheduler) error {
	for kind, ok := range f.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("wait for %s: %w", kind, context.Cause(ctx))
		}
	}
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		return fmt.Errorf("wait for scheduler handlers: %w", err)
	}
	return nil
}

// loopEnd returns a channel that is closed when the scheduling loop has taken
// notice of the end of its queue. The scheduler's own Run does not wait for it.
func loopEnd(sched *scheduler.Scheduler) <-chan struct{} {
	stopped := make(chan struct{})
	next, closed := sched.NextEntity, false
	sched.NextEntity = func(logger klog.Logger) (framework.QueuedEntityInfo, error) {
		entity, err := next(logger)
		select {
		case <-sched.StopEverything:
			// Only the one loop calls this, so closed needs no lock.
			if (err != nil || entity == nil) && !closed {
				closed = true
				close(stopped)
			}
		default:
		}
		return entity, err
	}
	return stopped
}

// settings is the default profile with what differs here.
func settings() ([]config.KubeSchedulerProfile, error) {
	defaults, err := latest.Default()
	if err != nil {
		return nil, fmt.Errorf("read scheduler defaults: %w", err)
	}
	for _, p := range defaults.Profiles {
		for _, plugin := range p.PluginConfig {
			if args, ok := plugin.Args.(*config.PodTopologySpreadArgs); ok && plugin.Name == names.PodTopologySpread {
				evenly(args)
			}
		}
	}
	return defaults.Profiles, nil
}

// evenly spreads the replicas of a workload over peers. Upstream's default lets
// three more lie on one machine than on another before it minds, which on three
// machines is no spreading at all. It is a preference: with two peers of three
// down, the third takes everything.
func evenly(args *config.PodTopologySpreadArgs) {
	args.DefaultingType = config.ListDefaulting
	args.DefaultConstraints = []corev1.TopologySpreadConstraint{
		{MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway},
	}
}
