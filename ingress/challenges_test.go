package ingress

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// However many strangers ask for tokens, the API is read once a second; and who asks for one that
// is there by then is told it.
func TestChallengesAreReadOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		var reads atomic.Int32
		client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			reads.Add(1)
			return false, nil, nil
		})
		c := &challenges{client: client}
		ask := func(token, want string) {
			got, err := c.response(t.Context(), token)
			if err != nil || got != want {
				t.Errorf("%s: %q, %v; want %q", token, got, err, want)
			}
		}
		ask("one", "")
		_, err := client.CoreV1().ConfigMaps(acmeNamespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: acmeChallenges}, Data: map[string]string{"one": "1"}}, metav1.CreateOptions{})
		must(t, err)
		began := time.Now()
		var wait sync.WaitGroup
		for range 100 {
			wait.Go(func() { ask("two", "") })
			wait.Go(func() { ask("one", "1") })
		}
		wait.Wait()
		if took := time.Since(began); reads.Load() != 2 || took > challengeEvery {
			t.Errorf("%d readings, the second of them after %s", reads.Load(), took)
		}
	})
}
