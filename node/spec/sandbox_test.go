package spec

import (
	"fmt"
	"testing"
)

func TestPortsAreOfWhatRunsAsLongAsThePod(t *testing.T) {
	pod := podOf(t, `{initContainers: [{name: once, ports: [{containerPort: 1}]}, {name: side, restartPolicy: Always, ports: [{containerPort: 2}]}],
		containers: [{name: web, ports: [{containerPort: 3, hostPort: 80}, {containerPort: 4}]}]}`)
	var have []int32
	for _, p := range Ports(pod) {
		have = append(have, p.ContainerPort)
	}
	if fmt.Sprint(have) != "[2 3 4]" {
		t.Errorf("ports %v", have)
	}
}
