package node

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/runtime"
)

// state is what the agent keeps of a pod on disk: DIR/UID/state.json. It changes
// when a container or the sandbox is made or ends, never while a pod just runs.
type state struct {
	Sandbox    int                     `json:"sandbox"`          // attempt
	Bounds     *runtime.Resources      `json:"bounds,omitempty"` // of the sandbox
	Containers map[string]*plan.Memory `json:"containers"`
	Admitted   bool                    `json:"admitted,omitempty"`
	Devices    map[string][]string     `json:"devices,omitempty"` // by container
}

func (w *worker) statePath() string {
	return filepath.Join(w.a.volumes.PodDir(w.uid), "state.json")
}

// load restores the memory; without one the engine's labels and the API's status have to do.
func (w *worker) load() {
	data, err := os.ReadFile(w.statePath())
	if err != nil {
		return
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		w.a.log.Warn("read pod state", "pod", w.uid, "error", err)
		return
	}
	w.attempt, w.bounds, w.saved = s.Sandbox, s.Bounds, data
	w.admitted, w.devices = s.Admitted, s.Devices
	for name, m := range s.Containers {
		if m != nil {
			w.memory[name] = m
		}
	}
}

// save writes the memory if it changed. Only the step calls it, and it holds no lock meanwhile.
func (w *worker) save() {
	w.mu.Lock()
	data, err := json.Marshal(state{Sandbox: w.attempt, Bounds: w.bounds, Containers: w.memory, Admitted: w.admitted, Devices: w.devices})
	skip := bytes.Equal(data, w.saved) || w.halt.Remove || w.halt.Discard // its directory is about to go
	w.mu.Unlock()
	if err == nil && !skip {
		if err = os.MkdirAll(filepath.Dir(w.statePath()), 0o700); err == nil {
			err = replaceFile(w.statePath(), data)
		}
		if err == nil {
			w.mu.Lock()
			w.saved = data
			w.mu.Unlock()
		}
	}
	if err != nil {
		w.a.log.Warn("write pod state", "pod", w.name(), "error", err)
	}
}

// replaceFile leaves the old or the new content, never half of one.
func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
