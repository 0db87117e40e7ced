package apiserver_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit/policy"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
	clientrest "k8s.io/client-go/rest"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// TestAudit: what was asked is written down, what was refused too.
func TestAudit(t *testing.T) {
	log := &lockedBuffer{}
	rules, err := policy.LoadPolicyFromBytes([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: None, users: [system:apiserver]}, {level: Metadata}]"))
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Audit = &apiserver.Audit{Policy: policy.NewPolicyRuleEvaluator(rules), Backend: auditlog.NewBackend(log, auditlog.FormatJson, auditv1.SchemeGroupVersion)}
	})
	ctx := t.Context()
	create := func(cfg *clientrest.Config, name string) error {
		_, err := client(t, cfg).CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"pin": "4711"}}, metav1.CreateOptions{})
		return err
	}
	if err := create(p.ClientConfig("admin", "system:masters"), "kept"); err != nil {
		t.Fatal(err)
	}
	if err := create(p.ClientConfig("bob"), "refused"); !apierrors.IsForbidden(err) {
		t.Fatalf("bob: %v", err)
	}
	wrong := p.listen(t)
	wrong.BearerToken = "x"
	if err := create(wrong, "unknown"); !apierrors.IsUnauthorized(err) {
		t.Fatalf("wrong token: %v", err)
	}
	for _, want := range [][]string{
		{`"username":"admin"`, `"name":"kept"`, `"code":201`},
		{`"username":"bob"`, `"code":403`},
		{`"code":401`},
	} {
		eventually(t, strings.Join(want, " "), func() bool {
			for _, line := range log.lines() {
				all := true
				for _, part := range want {
					all = all && strings.Contains(line, part)
				}
				if all {
					return true
				}
			}
			return false
		})
	}
	for _, line := range log.lines() {
		if strings.Contains(line, "4711") {
			t.Errorf("contents are in the log: %s", line)
		}
	}
}
