package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/runtime"
)

// idsPerPod users and groups are in a pod's user namespace, as in kubelet: 0 to 65535,
// and as many aligned ranges are there on the machine, the first of which is its own.
const idsPerPod = 1 << 16

func (m *Manager) idsFile(uid types.UID) string { return filepath.Join(m.PodDir(uid), "ids") }

// IDs are the users and groups of the machine that are the pod's, and no other pod's. They
// are in the pod's directory, outlive the daemon, and are free again when that is removed.
func (m *Manager) IDs(uid types.UID) (runtime.IDRange, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pods, err := m.Pods()
	if err != nil {
		return runtime.IDRange{}, err
	}
	taken := map[uint32]bool{0: true}
	for _, pod := range pods {
		data, err := os.ReadFile(m.idsFile(pod))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		n, parseErr := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 16)
		if err = errors.Join(err, parseErr); err != nil {
			return runtime.IDRange{}, fmt.Errorf("read user ids of pod %s: %w", pod, err)
		}
		if pod == uid {
			return rangeOf(uint32(n)), nil
		}
		taken[uint32(n)] = true
	}
	for n := range uint32(idsPerPod) {
		if taken[n] {
			continue
		}
		if err := os.MkdirAll(m.PodDir(uid), 0o755); err != nil {
			return runtime.IDRange{}, fmt.Errorf("write user ids: %w", err)
		}
		// Synced: half a file after a power loss would keep every pod with ids of its own from starting.
		if err := renameio.WriteFile(m.idsFile(uid), []byte(strconv.Itoa(int(n))), 0o600, renameio.WithTempDir(m.PodDir(uid))); err != nil {
			return runtime.IDRange{}, fmt.Errorf("write user ids: %w", err)
		}
		return rangeOf(n), nil
	}
	return runtime.IDRange{}, errors.New("every range of user ids of this machine is in use")
}

func rangeOf(n uint32) runtime.IDRange { return runtime.IDRange{First: n * idsPerPod, Size: idsPerPod} }
