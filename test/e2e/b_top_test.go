package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// busy computes as much as it may, which is four times what it asks for.
const busy = `apiVersion: apps/v1
kind: Deployment
metadata: {name: busy, namespace: hello}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: busy
        image: localhost/busybox:1
        command: [/bin/sh, -c, 'while :; do :; done']
        resources: {requests: {cpu: 50m}, limits: {cpu: 200m}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy, namespace: hello}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 100}}}
`

// rows are the lines that a command printed below its header, each of which has to look like that.
func rows(t *testing.T, host, line, header, row string) ([]string, error) {
	t.Helper()
	out, err := shared.Run(t.Context(), host, strings.Fields(line)...)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if strings.Join(strings.Fields(lines[0]), " ") != header {
		return nil, fmt.Errorf("%s printed %q", line, out)
	}
	for _, l := range lines[1:] {
		if !regexp.MustCompile("^" + row + `\s*$`).MatchString(l) {
			return nil, fmt.Errorf("%s printed the line %q", line, l)
		}
	}
	return lines[1:], nil
}

// Every peer tells what all nodes and pods use; by that a busy Deployment is scaled up.
func TestTopAndAutoscaling(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "busy.yaml")
	if err := os.WriteFile(manifest, []byte(busy), 0o644); err != nil {
		t.Fatal(err)
	}
	scale(t, "h1", 3)
	sh(t, "h1", "rookery apply -f "+manifest)
	defer sh(t, "h1", "rookery delete -f "+manifest)
	for _, h := range shared.Peers() {
		took := eventually(t, 30*time.Second, func() error {
			nodes, err := rows(t, h.Name, "rookery top nodes", "NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)", `h\d +[1-9]\d*m +\d+% +[1-9]\d*Mi +\d+%`)
			if err == nil && len(nodes) != 3 {
				err = fmt.Errorf("nodes: %q", nodes)
			}
			return err
		})
		t.Logf("nodes from %s after %s", h.Name, took.Round(time.Millisecond))
		took = eventually(t, 30*time.Second, func() error {
			pods, err := rows(t, h.Name, "rookery -n hello top pods -l app=hello --containers", "POD NAME CPU(cores) MEMORY(bytes)", `hello-\S+ +(hello|counts) +\d+m +[1-9]\d*Mi`)
			if err == nil && len(pods) != 6 {
				err = fmt.Errorf("three pods of two containers: %q", pods)
			}
			return err
		})
		t.Logf("pods from %s after %s", h.Name, took.Round(time.Millisecond))
	}
	eventually(t, 30*time.Second, func() error {
		pods, err := rows(t, "h2", "rookery -n hello top pods -l app=busy", "NAME CPU(cores) MEMORY(bytes)", `busy-\S+ +\d\d\d?m +\d+Mi`)
		if err == nil && len(pods) == 0 {
			err = fmt.Errorf("no busy pod")
		}
		return err
	})
	took := eventually(t, 75*time.Second, func() error {
		out, err := shared.Run(t.Context(), "h3", strings.Fields("rookery -n hello get deployment busy -o jsonpath={.status.readyReplicas}")...)
		if err == nil && out != "3" {
			err = fmt.Errorf("%s replicas are ready", out)
		}
		return err
	})
	t.Logf("scaled up after %s", took.Round(time.Millisecond))
	if out := sh(t, "h1", "rookery -n hello describe hpa busy"); !strings.Contains(out, "SuccessfulRescale") || !strings.Contains(out, "ValidMetricFound") {
		t.Errorf("describe printed %s", out)
	}
}
