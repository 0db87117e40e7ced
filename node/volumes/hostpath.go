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
			return fmt.Errorf("hostPath type check failed, %s is not a %s, unable to determine its type: path %q does not exist", src.Path, called(kind), src.Path)
		}
		if isKind(info.Mode(), kind) {
			return nil
		}
	}
	return fmt.Errorf("hostPath type check failed: %s is not a %s, it's a %s", src.Path, called(kind), kindOf(info.Mode()))
}

// called is a type in kubelet's words.
func called(kind v1.HostPathType) string {
	switch kind {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		return "directory"
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		return "file"
	case v1.HostPathSocket:
		return "socket file"
	case v1.HostPathCharDev:
		return "character device"
	case v1.HostPathBlockDev:
		return "block device"
	}
	return string(kind)
}

func kindOf(mode os.FileMode) string {
	for _, kind := range []v1.HostPathType{v1.HostPathDirectory, v1.HostPathFile, v1.HostPathSocket, v1.HostPathCharDev, v1.HostPathBlockDev} {
		if isKind(mode, kind) {
			return string(kind)
		}
	}
	return mode.Type().String()
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
