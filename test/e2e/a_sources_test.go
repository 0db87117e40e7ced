package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// A pod that may give itself addresses sends under none that is not its own: what it sends
// so reaches nobody, is counted, and told once.
func TestForgedSourcesAreDropped(t *testing.T) {
	other := scale(t, "h1", 3)[0].Status.PodIP
	file := manifest(t, `
{apiVersion: v1, kind: Pod, metadata: {name: forger, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [
    {name: c, image: localhost/busybox:1, command: [sleep, "1000"], securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW]}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: hello}, spec: {nodeName: h3, terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
`)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+file)
	sh(t, "h1", "rookery apply -f "+file)
	sh(t, "h1", "rookery wait --for=condition=Ready --timeout=2m -f "+file)
	in := func(pod, script string) string {
		t.Helper()
		return must(t, "h1", "rookery", "-n", "hello", "exec", pod, "--", "sh", "-c", script)
	}
	targets := map[string]string{} // addresses by name
	for _, name := range []string{"near", "far"} {
		targets[name] = strings.TrimSpace(sh(t, "h1", "rookery -n hello get pod "+name+" -o jsonpath={.status.podIP}"))
	}
	// honest is how many packets were sent until one to each target was answered, under the
	// pod's own address.
	honest := func() map[string]int {
		t.Helper()
		sent := map[string]int{}
		for name, ip := range targets {
			eventually(t, patience, func() error {
				sent[name]++
				if out := in("forger", "ping -c 1 -W 10 "+ip+" || true"); !strings.Contains(out, " 1 packets received") {
					return fmt.Errorf("%s does not answer: %s", name, out)
				}
				return nil
			})
		}
		return sent
	}
	honest()
	toldOnce := refusals(t, "h2", "source", "a pod sends under an address that is not its own", "hello/forger")
	// Another pod's, a Service's, its machine's, another machine's, one of the outside.
	sources := []string{other, clusterDNS, "10.77.0.2", "10.77.0.3", "192.0.2.7"}
	forge := ""
	for _, source := range sources {
		in("forger", "ip addr add "+source+"/32 dev eth0")
		for name, ip := range targets {
			forge += fmt.Sprintf("ping -c 1 -W 1 -I %s %s >/dev/null && echo %s answers %s & ", source, ip, name, source)
		}
	}
	before := map[string]int{}
	for name := range targets {
		before[name] = echoes(t, in(name, "cat /proc/net/snmp"))
	}
	toldOnce(func() {
		if out := in("forger", forge+"wait"); out != "" {
			t.Error(out)
		}
	})
	noted := sh(t, "h2", "nft list set ip rookery refused-source")
	for _, source := range sources {
		if !strings.Contains(noted, " . "+source+" ") {
			t.Errorf("what is sent as %s is not counted: %s", source, noted)
		}
	}
	for name, own := range honest() { // which come after the forged ones
		if heard := echoes(t, in(name, "cat /proc/net/snmp")) - before[name]; heard < 1 || heard > own {
			t.Errorf("%s has heard %d packets, of %d that were not forged", name, heard, own)
		}
	}
}

// echoes reads how many ICMP echo requests were heard from what /proc/net/snmp says.
func echoes(t *testing.T, snmp string) (n int) {
	t.Helper()
	lines := strings.SplitAfter(snmp, "\nIcmp: ") // names, then figures
	if len(lines) != 3 {
		t.Fatalf("no counts of ICMP: %s", snmp)
	}
	for i, name := range strings.Fields(lines[1]) {
		if name == "InEchos" {
			fmt.Sscan(strings.Fields(lines[2])[i], &n)
			return n
		}
	}
	t.Fatalf("no count of echo requests: %s", snmp)
	return 0
}
