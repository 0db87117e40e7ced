package volumes

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/apimachinery/pkg/types"
)

// maxMessage is how much of a termination message is kept, as in kubelet.
const maxMessage = 4096

func (m *Manager) messagePath(uid types.UID, container string, attempt int) string {
	return filepath.Join(m.PodDir(uid), "termination", container, strconv.Itoa(attempt))
}

func (m *Manager) terminationFile(uid types.UID, container string, attempt int) (string, error) {
	path := m.messagePath(uid, container, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("create termination message: %w", err)
	}
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", fmt.Errorf("create termination message: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // any user of the container may write it
		return "", fmt.Errorf("create termination message: %w", err)
	}
	return path, nil
}

// TerminationMessage reads what a container left as its last word; empty if nothing.
func (m *Manager) TerminationMessage(uid types.UID, container string, attempt int) (string, error) {
	f, err := os.Open(m.messagePath(uid, container, attempt))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read termination message: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMessage))
	if err != nil {
		return "", fmt.Errorf("read termination message: %w", err)
	}
	return string(data), nil
}
