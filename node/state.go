package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

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
	Active     *active                 `json:"active,omitempty"`
}

func (w *worker) statePath() string {
	return filepath.Join(w.a.volumes.PodDir(w.uid), "state.json")
}

// load restores the memory. Without one, as after a loss of power that left no whole
// file, the engine's labels and the API's status have to do.
func (w *worker) load() {
	s, data, err := readState(w.statePath())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			w.a.log.Warn("read pod state: going on by what the engine and the API know", "pod", w.uid, "error", err)
		}
		return
	}
	w.attempt, w.bounds, w.saved = s.Sandbox, s.Bounds, data
	w.admitted, w.devices, w.wasActive = s.Admitted, s.Devices, s.Active
	for name, m := range s.Containers {
		if m != nil {
			w.memory[name] = m
		}
	}
}

// readState is all of the file, or an error: a part of it is never taken for the whole.
func readState(path string) (state, []byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return state{}, nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return state{}, nil, fmt.Errorf("%s is not whole: %w", path, err)
	}
	if s.Containers == nil {
		return state{}, nil, fmt.Errorf("%s is not whole: it names no containers", path)
	}
	return s, data, nil
}

// save writes the memory if it changed. Only the step calls it, and it holds no lock meanwhile.
// False: it is not on disk, which is logged.
func (w *worker) save() bool {
	w.mu.Lock()
	data, err := json.Marshal(state{Sandbox: w.attempt, Bounds: w.bounds, Containers: w.memory, Admitted: w.admitted, Devices: w.devices, Active: w.wasActive})
	skip := bytes.Equal(data, w.saved) || w.halt.Remove || w.halt.Discard // its directory is about to go
	w.mu.Unlock()
	if err == nil && !skip {
		if err = os.MkdirAll(filepath.Dir(w.statePath()), 0o700); err == nil {
			err = renameio.WriteFile(w.statePath(), data, 0o600, renameio.WithTempDir(filepath.Dir(w.statePath()))) // the old or the new one, also after a loss of power
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
	return err == nil
}
