package main

import (
	"errors"
	"fmt"

	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit/policy"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"

	"github.com/rundigitalplatform/rookery/apiserver"
)

// auditChanges is the policy without --audit-policy: what people and their programs
// change, and who, but not to what. The cluster's own components are left out, which
// write all the time.
const auditChanges = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, userGroups: ["system:nodes", "system:serviceaccounts:kube-system"]}
- {level: None, users: ["system:apiserver", "system:kube-scheduler", "system:kube-controller-manager", "system:rookery-controller", "system:rookery-ingress"]}
- {level: None, verbs: [get, list, watch]}
- {level: None, nonResourceURLs: ["/*"]}
- {level: None, resources: [{group: authorization.k8s.io}, {group: authentication.k8s.io}, {group: "", resources: [events]}, {group: events.k8s.io}]}
- {level: Metadata}
`

// audit is the audit log that the configuration asks for; nil: none.
func (c *config) audit() (*apiserver.Audit, error) {
	if c.AuditLog == "" {
		if c.AuditPolicy != "" {
			return nil, errors.New("audit-policy says what to write down, but not where: set audit-log too")
		}
		return nil, nil
	}
	if c.AuditMaxSize < 1 || c.AuditMaxFiles < 1 {
		return nil, errors.New("audit-max-size and audit-max-files are 1 or more")
	}
	var rules *auditinternal.Policy
	var err error
	if c.AuditPolicy == "" {
		rules, err = policy.LoadPolicyFromBytes([]byte(auditChanges))
	} else {
		rules, err = policy.LoadPolicyFromFile(c.AuditPolicy)
	}
	if err != nil {
		return nil, fmt.Errorf("audit-policy %s: %w", c.AuditPolicy, err)
	}
	out, err := rotated("audit-log", c.AuditLog, c.AuditMaxSize, c.AuditMaxFiles)
	if err != nil {
		return nil, err
	}
	return &apiserver.Audit{
		Policy:  policy.NewPolicyRuleEvaluator(rules),
		Backend: auditlog.NewBackend(out, auditlog.FormatJson, auditv1.SchemeGroupVersion),
	}, nil
}
