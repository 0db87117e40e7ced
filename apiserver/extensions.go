package apiserver

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/client-go/informers"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
)

// aggregate adds the group in which APIs of extension servers are registered to those
// that are built in, and makes what forwards to them.
func (s *Server) aggregate(in *installer, groups []group) ([]group, error) {
	scheme, err := aggregation.NewScheme()
	if err != nil {
		return nil, err
	}
	builtin := map[schema.GroupVersion]bool{}
	options := restOptions{store: s.cfg.Store, scheme: scheme}
	groups = append(groups, group{apiregistration.GroupName, v1(aggregation.Resources(scheme, options, builtin))})
	for _, g := range groups {
		for _, v := range g.versions {
			// Ours of metrics.k8s.io stands in until somebody's metrics-server works.
			builtin[schema.GroupVersion{Group: g.name, Version: v.name}] = g.name == metricsv1beta1.GroupName
		}
	}
	in.schemes[apiregistration.GroupName] = scheme
	s.types.extensions = sync.OnceValue(func() typeConverter { return aggregation.Types(scheme) })
	s.extensions = aggregation.New(aggregation.Config{
		Store: s.cfg.Store, Prefix: registryPrefix + "/" + apiregistration.GroupName + "/apiservices/", Scheme: scheme, Builtin: builtin,
		FrontProxy: s.cfg.FrontProxy, Resolver: serviceResolver{s.client},
		Discovery: in.named.WithSource(aggregated.AggregatorSource), Groups: in.listed.extended, Codecs: s.codecs,
		Fail: s.fail, Client: s.ClientConfig("system:apiserver", "system:masters"), Logger: s.cfg.Logger,
	})
	return groups, nil
}

// BootstrapExtensions writes what extension servers and their installers look for, where
// it is not there: how they know the API, and the APIServices of built-in groups.
func (s *Server) BootstrapExtensions(ctx context.Context) error {
	return s.extensions.Bootstrap(ctx, s.client.CoreV1())
}

// bootstrapAgain is how long after a failure it is tried again.
const bootstrapAgain = 5 * time.Second

// WatchExtensions calls [Server.BootstrapExtensions], then keeps in the status of
// APIServices whether their servers answer, until ctx ends. It is for the leader. It holds
// nothing until there is one. view is what [Server.Informers] returns, seen so that its
// event handlers are taken back afterwards.
//
// What it writes first is not a part of [Server.Bootstrap]: a webhook that is down would
// refuse it, and a cluster must have a leader all the same.
func (s *Server) WatchExtensions(ctx context.Context, view informers.SharedInformerFactory) error {
	if s.cfg.FrontProxy == nil {
		return errors.New("the api was made without a front proxy certificate")
	}
	for ctx.Err() == nil {
		err := s.BootstrapExtensions(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			s.cfg.Logger.Warn("what extension servers look for is not written yet", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(bootstrapAgain):
		}
	}
	return s.extensions.WatchAvailability(ctx, view)
}
