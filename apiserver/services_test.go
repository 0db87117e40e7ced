package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func aService(name string, kind corev1.ServiceType) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: kind, Ports: []corev1.ServicePort{{Port: 80}}}}
}

// Two peers allocate at once from small ranges: nothing is given out twice,
// what is full says so, and what is deleted is free again.
func TestServiceAddressesAreUnique(t *testing.T) {
	store := raftstore.NewMemory()
	small := func(c *apiserver.Config) {
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/27")} // 30 addresses, one of them taken by Service kubernetes
		c.NodePorts = apiserver.PortRange{First: 30000, Last: 30039}
	}
	peers := []*peer{start(t, store, small), start(t, store, small)}
	ctx := t.Context()

	k, err := peers[0].admin.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || k.Spec.ClusterIP != "10.43.0.1" {
		t.Fatalf("service kubernetes: %v, %v", k, err)
	}

	var mu sync.Mutex
	var wg sync.WaitGroup
	ips, ports := map[string]string{}, map[int32]string{}
	for i := range 29 {
		wg.Go(func() {
			name := fmt.Sprint("s", i)
			svc, err := peers[i%2].admin.CoreV1().Services("default").Create(ctx, aService(name, corev1.ServiceTypeNodePort), metav1.CreateOptions{})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("create %s: %v", name, err)
				return
			}
			if other, taken := ips[svc.Spec.ClusterIP]; taken {
				t.Errorf("%s and %s both have %s", name, other, svc.Spec.ClusterIP)
			}
			if other, taken := ports[svc.Spec.Ports[0].NodePort]; taken {
				t.Errorf("%s and %s both have port %d", name, other, svc.Spec.Ports[0].NodePort)
			}
			ips[svc.Spec.ClusterIP], ports[svc.Spec.Ports[0].NodePort] = name, name
		})
	}
	wg.Wait()

	services := peers[1].admin.CoreV1().Services("default")
	if _, err := services.Create(ctx, aService("over", corev1.ServiceTypeClusterIP), metav1.CreateOptions{}); err == nil {
		t.Error("an address beyond the range was given out")
	}
	if err := services.Delete(ctx, "s0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	svc, err := services.Create(ctx, aService("again", corev1.ServiceTypeClusterIP), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	chosen := aService("chosen", corev1.ServiceTypeClusterIP)
	chosen.Spec.ClusterIP = svc.Spec.ClusterIP
	if _, err := services.Create(ctx, chosen, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("create with an address that is taken: %v", err)
	}
}

// severed is a store without quorum.
type severed struct{ raftstore.Store }

func (severed) Sync(context.Context) error {
	return &raftstore.NoQuorumError{Missing: []string{"n2", "n3"}, Voters: 3}
}
func (s severed) Txn(ctx context.Context, _ raftstore.Txn) (raftstore.Result, error) {
	return raftstore.Result{}, s.Sync(ctx)
}

func TestIsland(t *testing.T) {
	store := raftstore.NewMemory()
	start(t, store).stop()
	server, err := apiserver.New(apiserver.Config{Store: severed{store}, Logger: discard(), TokenKey: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, "ready without quorum", func() bool { return server.Ready() == nil })

	cfg := server.ClientConfig("admin", "system:masters")
	heard := &warnings{}
	cfg.WarningHandler = heard
	admin := client(t, cfg)
	if _, err := admin.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{}); err != nil {
		t.Errorf("read: %v", err)
	}
	if len(heard.texts) == 0 {
		t.Error("a stale answer carries no warning")
	}
	_, err = admin.CoreV1().ConfigMaps("default").Create(ctx, configMap("a", ""), metav1.CreateOptions{})
	_, err2 := admin.CoreV1().Services("default").Create(ctx, aService("s", corev1.ServiceTypeClusterIP), metav1.CreateOptions{})
	for _, err := range []error{err, err2} {
		var status *apierrors.StatusError
		if !errors.As(err, &status) || status.ErrStatus.Code != 503 || !apierrors.IsServiceUnavailable(err) {
			t.Errorf("write: %v", err)
		}
	}
}

type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}
