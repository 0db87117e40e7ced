package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
)

func TestSettingsSpreadEvenly(t *testing.T) {
	profiles, err := settings()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range profiles[0].PluginConfig {
		args, ok := p.Args.(*config.PodTopologySpreadArgs)
		if !ok {
			continue
		}
		found = true
		c := args.DefaultConstraints
		if args.DefaultingType != config.ListDefaulting || len(c) != 1 || c[0].MaxSkew != 1 || c[0].WhenUnsatisfiable != corev1.ScheduleAnyway {
			t.Errorf("got %+v", args)
		}
	}
	if !found {
		t.Error("the default profile has no arguments for PodTopologySpread")
	}
}

// TestResourceKindsAreEmpty syncs without an API that serves them.
func TestResourceKindsAreEmpty(t *testing.T) {
	client := fake.NewClientset()
	f := newEmptyResources(informers.NewSharedInformerFactory(client, 0))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	claims := f.Resource().V1().ResourceClaims().Informer()
	rules := f.Resource().V1().DeviceTaintRules().Informer()
	if claims == rules {
		t.Error("one informer for two kinds")
	}
	f.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), claims.HasSynced, rules.HasSynced) {
		t.Fatal("not synced")
	}
	list := claims.GetStore().List()
	for _, obj := range list {
		if _, ok := obj.(*resourcev1.ResourceClaim); ok {
			t.Errorf("has %v", obj)
		}
	}
	for _, a := range client.Actions() {
		t.Errorf("asked the api: %s", fmt.Sprint(a))
	}
	cancel()
	f.wait()
}

func TestRunNeedsItsConfig(t *testing.T) {
	if err := Run(t.Context(), Config{Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("ran without a client")
	}
}
