package apiserver_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// A namespace says by annotations what its pods tolerate and may tolerate; pods of
// others are left as they are.
func TestTolerationsOfNamespaces(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "edge", Annotations: map[string]string{
		"scheduler.alpha.kubernetes.io/defaultTolerations":   `[{"key":"edge","operator":"Exists"}]`,
		"scheduler.alpha.kubernetes.io/tolerationsWhitelist": `[{"key":"edge","operator":"Exists"},{"operator":"Exists","effect":"NoExecute"},{"key":"node.kubernetes.io/memory-pressure","operator":"Exists"}]`,
	}}}
	if _, err := p.admin.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.CoreV1().ServiceAccounts("edge").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	keys := func(namespace string, tolerate ...corev1.Toleration) ([]string, error) {
		pod := aPod("p")
		pod.Spec.Tolerations = tolerate
		made, err := p.admin.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{"All"}})
		if err != nil {
			return nil, err
		}
		var out []string
		for _, t := range made.Spec.Tolerations {
			out = append(out, t.Key)
		}
		slices.Sort(out)
		return out, nil
	}
	eventually(t, "the namespace's default toleration is given", func() bool {
		have, err := keys("edge")
		return err == nil && slices.Contains(have, "edge")
	})
	gpu := corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}
	if have, err := keys("edge", gpu); err == nil || !strings.Contains(err.Error(), "conflict with its namespace whitelist") {
		t.Errorf("what is not allowed: %v, %v", have, err)
	}
	want := []string{"gpu", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
	if have, err := keys("default", gpu); err != nil || !slices.Equal(have, want) {
		t.Errorf("in another namespace: %v, %v, want %v", have, err, want)
	}
}
