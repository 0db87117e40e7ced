package volumes

import (
	"errors"
	"fmt"
	"os"

	v1 "k8s.io/api/core/v1"
)

// hostPath checks, and where its type says so creates, the path. A path without a
// type is created as a directory when it is missing, as container engines do.
func hostPath(src *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if src.Type != nil {
		kind = *src.Type
	}
	info, err := os.Stat(src.Path)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("hostPath: %w", err)
	}
	switch kind {
	case v1.HostPathUnset, v1.HostPathDirectoryOrCreate:
		if missing {
			if err := os.MkdirAll(src.Path, 0o755); err != nil {
				return fmt.Errorf("hostPath: %w", err)
			}
			return nil
		}
		if kind == v1.HostPathUnset || info.IsDir() {
			return nil
		}
	case v1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(src.Path, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return fmt.Errorf("hostPath: %w", err)
			}
			return f.Close()
		}
		if info.Mode().IsRegular() {
			return nil
		}
	default:
		if missing {
			return fmt.Errorf("hostPath type check failed: %s is not there on this peer", src.Path)
		}
		if isKind(info.Mode(), kind) {
			return nil
		}
	}
	return fmt.Errorf("hostPath type check failed: %s is not a %s", src.Path, kind)
}

func isKind(mode os.FileMode, kind v1.HostPathType) bool {
	switch kind {
	case v1.HostPathDirectory:
		return mode.IsDir()
	case v1.HostPathFile:
		return mode.IsRegular()
	case v1.HostPathSocket:
		return mode&os.ModeSocket != 0
	case v1.HostPathCharDev:
		return mode&os.ModeCharDevice != 0
	case v1.HostPathBlockDev:
		return mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	}
	return false
}
