package survive

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const served = `
apiVersion: v1
kind: Pod
metadata: {name: served}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "localhost/hello:1", args: [serve]}
`

// stored is a path in the storage of the host's Podman.
func stored(elem ...string) string {
	return filepath.Join(append([]string{shared.HostDir(host), "storage"}, elem...)...)
}

// storedImage is what Podman's list says of an image.
func storedImage(t *testing.T, name string) (id, layer string) {
	t.Helper()
	var list []struct {
		ID, Layer string
		Names     []string
	}
	text, err := os.ReadFile(stored("overlay-images", "images.json"))
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		for _, have := range img.Names {
			if have == name {
				return img.ID, img.Layer
			}
		}
	}
	t.Fatalf("Podman has no image %s: %s", name, text)
	return "", ""
}

// crashed breaks something while the power is off.
func crashed(t *testing.T, breaking func()) {
	t.Helper()
	if err := shared.Crash(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	breaking()
	if err := shared.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
}

// told waits for an event of the Node that says what was damaged, and looks whether
// `rookery status` says it too.
func told(t *testing.T, parts ...string) {
	t.Helper()
	says := func(text string) bool {
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	}
	eventually(t, patience, func() error {
		list, err := api.CoreV1().Events("").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,reason=StorageDamaged"})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range list.Items {
			if says(e.Message) {
				t.Log(e.Message)
				return nil
			}
			all = append(all, e.Message)
		}
		return fmt.Errorf("no event says %q: %q", parts, all)
	})
	if out, err := try(t, "rookery", "status"); err != nil || !says(out) {
		t.Errorf("status does not say %q: %s, %v", parts, out, err)
	}
}

// waitLost waits until the pod says that its image is lost, and loads that.
func waitLost(t *testing.T, name, file string) {
	t.Helper()
	eventually(t, patience, func() error {
		p, err := pod(name)
		if err != nil {
			return err
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Waiting != nil && strings.Contains(s.State.Waiting.Message, "rookery image load") {
				return nil
			}
		}
		return fmt.Errorf("the status is %+v", p.Status.ContainerStatuses)
	})
	must(t, "rookery", "image", "load", filepath.Join(shared.Bin, file))
}

// back waits until the pod is Ready and its containers run: for a moment after a start the
// API says what was before.
func back(t *testing.T, name string) {
	t.Helper()
	took := eventually(t, 90*time.Second, func() error {
		there := containers(t, name)
		if len(there) == 0 {
			return fmt.Errorf("Podman has no containers of %s", name)
		}
		for _, all := range there {
			if !slices.ContainsFunc(all, func(c container) bool { return c.State == "running" }) {
				return fmt.Errorf("containers of %s are %+v", name, all)
			}
		}
		p, err := pod(name)
		if err != nil {
			return err
		}
		return ready(p)
	})
	t.Logf("%s runs again after %.1fs", name, took.Seconds())
}

func truncate(t *testing.T, size int64, path string) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// After a power loss files are empty that were written shortly before. An image that has
// lost one is removed and that is told; pods of other images run, and its own when it is
// loaded again.
func TestImageDamagedByPowerLoss(t *testing.T) {
	create(t, fmt.Sprintf(plain, "whole"))
	create(t, served)
	waitReady(t, patience, "whole", "served")
	for name, breaking := range map[string]func(id, layer string){
		"the file hello has 0 bytes": func(_, layer string) { truncate(t, 0, stored("overlay", layer, "diff", "hello")) },
		"its manifest has":           func(id, _ string) { truncate(t, 0, stored("overlay-images", id, "manifest")) },
	} {
		crashed(t, func() { breaking(storedImage(t, "localhost/hello:1")) })
		back(t, "whole")
		told(t, "localhost/hello:1", name, "it was removed", "loaded by hand")
		waitLost(t, "served", "hello.tar")
		back(t, "served")
		back(t, "whole")
	}
	if out, err := try(t, "rookery", "status"); err != nil || strings.Contains(out, "localhost/hello:1") {
		t.Errorf("status goes on about an image that is back: %s, %v", out, err)
	}
	clear(t)
}

// The image of infra containers: Podman would fail with each pod for ever.
func TestInfraImageDamagedByPowerLoss(t *testing.T) {
	create(t, fmt.Sprintf(plain, "whole"))
	waitReady(t, patience, "whole")
	out, err := podman(t, "images --format {{.Repository}}:{{.Tag}} --filter reference=localhost/podman-pause")
	if err != nil {
		t.Fatal(err)
	}
	crashed(t, func() {
		_, layer := storedImage(t, strings.TrimSpace(out))
		if err := os.RemoveAll(stored("overlay", layer)); err != nil {
			t.Error(err)
		}
	})
	back(t, "whole")
	told(t, "podman-pause", "Podman makes it again")
	clear(t)
}

// Podman's lists are torn in the middle: what stood before the tear is kept.
func TestListsTornByPowerLoss(t *testing.T) {
	create(t, fmt.Sprintf(plain, "whole"))
	create(t, served)
	waitReady(t, patience, "whole", "served")
	for _, list := range []string{"overlay-containers/containers.json", "overlay-layers/layers.json", "overlay-images/images.json"} {
		crashed(t, func() {
			info, err := os.Stat(stored(list))
			if err != nil {
				t.Fatal(err)
			}
			truncate(t, info.Size()-20, stored(list))
		})
		told(t, "is torn", "set aside as "+stored(list)+".torn-")
		for _, file := range []string{"hello.tar", "busybox.tar"} { // whichever was lost
			must(t, "rookery", "image", "load", filepath.Join(shared.Bin, file))
		}
		back(t, "whole")
		back(t, "served")
	}
	clear(t)
}

// Without its database Podman does not start. It is set aside before rookery asks Podman
// for anything, and pods come back without the containers that are in it.
func TestDatabaseTornByPowerLoss(t *testing.T) {
	create(t, fmt.Sprintf(plain, "whole"))
	waitReady(t, patience, "whole")
	if err := shared.Kill(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	podmanMust(t, "stop -a -t 0") // what ran, ended with the power
	killService(t)
	truncate(t, 1000, stored("libpod", "bolt_state.db"))
	startService(t)
	eventually(t, 20*time.Second, func() error {
		if p := service(t); p != "" {
			return fmt.Errorf("Podman runs with a torn database: %s", p)
		}
		return nil
	})
	out, err := try(t, "rookery", "up") // without Podman: it says what to do
	if err == nil || !strings.Contains(out+err.Error(), "database") || !strings.Contains(out+err.Error(), "set aside as") {
		t.Errorf("a start without Podman says: %s, %v", out, err)
	}
	startService(t)
	eventually(t, 20*time.Second, func() error { _, err := os.Stat(filepath.Join(shared.HostDir(host), "podman.sock")); return err })
	if err := shared.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
	back(t, "whole")
	eventually(t, 90*time.Second, func() error { // until it was looked, the API says what was
		if all := containers(t, "whole"); len(all["web"]) != 1 || len(all["side"]) != 1 {
			return fmt.Errorf("containers are %v", all)
		}
		return nil
	})
	told(t, "database", "set aside as")
	clear(t)
	eventually(t, 20*time.Second, func() error {
		out, err := podman(t, "ps -a --external --format {{.Names}}")
		if err == nil && strings.Contains(out, "whole") {
			err = fmt.Errorf("of the containers that Podman forgot these are left: %s", out)
		}
		return err
	})
	if c, err := condition(v1.NodeReady); err != nil || c.Status != v1.ConditionTrue {
		t.Errorf("the node is %+v, %v", c, err)
	}
}
