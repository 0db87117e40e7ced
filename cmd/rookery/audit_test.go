package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func TestAuditDefaults(t *testing.T) {
	log := filepath.Join(t.TempDir(), "audit.log")
	c := config{AuditLog: log, AuditMaxSize: 1, AuditMaxFiles: 1}
	a, err := c.audit()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		who    user.DefaultInfo
		verb   string
		where  string
		logged bool
	}{
		{user.DefaultInfo{Name: "admin", Groups: []string{"system:masters"}}, "create", "deployments", true},
		{user.DefaultInfo{Name: "system:serviceaccount:shop:robot", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:shop"}}, "delete", "pods", true},
		{user.DefaultInfo{Name: "admin", Groups: []string{"system:masters"}}, "list", "secrets", false},
		{user.DefaultInfo{Name: "system:node:h1", Groups: []string{"system:nodes"}}, "patch", "nodes", false},
		{user.DefaultInfo{Name: "system:serviceaccount:kube-system:deployment-controller", Groups: []string{"system:serviceaccounts:kube-system"}}, "update", "deployments", false},
	} {
		level := a.Policy.EvaluatePolicyRule(authorizer.AttributesRecord{User: &tt.who, Verb: tt.verb, Resource: tt.where, APIVersion: "v1", ResourceRequest: true}).Level
		if (level != "None") != tt.logged {
			t.Errorf("%s %s %s: %s", tt.who.Name, tt.verb, tt.where, level)
		}
	}
}

func TestAuditRefusals(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(bad, []byte("kind: Nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]config{
		"set audit-log too": {AuditPolicy: bad},
		"1 or more":         {AuditLog: filepath.Join(dir, "a")},
		"policy.yaml":       {AuditLog: filepath.Join(dir, "a"), AuditPolicy: bad, AuditMaxSize: 1, AuditMaxFiles: 1},
		"no such file":      {AuditLog: filepath.Join(dir, "none", "a"), AuditMaxSize: 1, AuditMaxFiles: 1},
	} {
		if a, err := c.audit(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, %v, want an error with %q", a, err, want)
		}
	}
	none := config{}
	if a, err := none.audit(); a != nil || err != nil {
		t.Errorf("without an audit log: %v, %v", a, err)
	}
}
