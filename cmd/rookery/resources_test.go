package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResourceSettings(t *testing.T) {
	const full = `
max-pods: 50
system-reserved: {memory: 1Gi, ephemeral-storage: 2Gi}
eviction-hard: {memory.available: 5%, nodefs.available: 0%}
eviction-soft: {memory.available: 1Gi}
eviction-soft-grace-period: {memory.available: 90s}
eviction-minimum-reclaim: {memory.available: 100Mi}
eviction-pressure-transition-period: 1m
eviction-max-pod-grace-period: 30s
devices:
  example.com/serial: [/dev/ttyUSB0, "/dev/serial/by-path/pci-0000:00:14.0"]
  example.com/gpu: /dev/dri
extended-resources: {example.com/licence: 3}
`
	for _, tt := range []struct{ name, file, args, want string }{
		{"nothing", "", "", "reserved [] devices map[] extended map[] after 5m0s"},
		{"all", full, "", "reserved [cpu=100m ephemeral-storage=2Gi memory=1Gi] devices map[example.com/gpu:[/dev/dri] example.com/serial:[/dev/ttyUSB0 /dev/serial/by-path/pci-0000:00:14.0]] extended map[example.com/licence:3] after 1m0s"},
		{"flags", "", "--system-reserved=cpu=1 --devices=example.com/a=/dev/ttyS0,example.com/a=/dev/ttyS1 --devices=example.com/b=/dev/null",
			"reserved [cpu=1 memory=100Mi] devices map[example.com/a:[/dev/ttyS0 /dev/ttyS1] example.com/b:[/dev/null]] extended map[] after 5m0s"},
		{"reserved what", "system-reserved: {pids: 5}", "", "error: --system-reserved pids: there are cpu, memory and ephemeral-storage"},
		{"reserved how much", "system-reserved: {cpu: much}", "", `error: --system-reserved cpu: "much" is not a quantity such as 100m or 100Mi`},
		{"signal", "eviction-hard: {memory: 1Gi}", "", `error: --eviction-hard: "memory" is not a signal; there are`},
		{"soft", "eviction-soft: {memory.available: 1Gi}", "", "error: --eviction-soft memory.available needs a period"},
		{"device", "devices: [/dev/dri]", "", `error: --devices "/dev/dri" is not RESOURCE=PATH`},
		{"device name", "devices: {serial: /dev/ttyUSB0}", "", `error: --devices: "serial" is not the name of a resource such as example.com/serial`},
		{"extended", "extended-resources: {example.com/licence: many}", "", `error: --extended-resources example.com/licence: "many" is not a number`},
		{"both", "devices: {example.com/a: /dev/null}\nextended-resources: {example.com/a: 1}", "", "error: --extended-resources example.com/a: these are devices already"},
		{"no pods", "max-pods: 0", "", "error: --max-pods 0"},
		{"negative", "eviction-max-pod-grace-period: -1s", "", "error: --eviction-pressure-transition-period and"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, f := settings()
			if err := f.Parse(strings.Fields(tt.args)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := load(f, path, true, nil); err != nil {
				t.Fatal(err)
			}
			r, err := c.Resources.load()
			have := "error: " + fmt.Sprint(err)
			if err == nil {
				reserved := []string{}
				for _, name := range []string{"cpu", "ephemeral-storage", "memory"} {
					for k, q := range r.Reserved {
						if string(k) == name {
							reserved = append(reserved, name+"="+q.String())
						}
					}
				}
				have = fmt.Sprintf("reserved %v devices %v extended %v after %s", reserved, r.Devices, r.Extended, r.Eviction.Transition)
			}
			if !strings.HasPrefix(have, tt.want) {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}
