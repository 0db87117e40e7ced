package podman

import (
	"fmt"

	"github.com/blang/semver/v4"

	"github.com/rundigitalplatform/rookery/runtime"
)

// ability is what a Podman can do from a version on.
type ability struct {
	since   semver.Version
	without string // what an older one means for the user
}

// abilities that rookery does without where Podman is older, the oldest first.
func abilities() []ability {
	return []ability{
		{checks(), "there is no `podman system check`, which reads every layer: after a power loss rookery itself looks whether lists and files of images are whole, not what is in the files"},
	}
}

// oldest and tested bound the versions of the API that this package speaks. What is
// newer answers requests of version 4 too, as long as it is of the same generation.
func oldest() semver.Version { return semver.Version{Major: 4, Minor: 3} }

const testedMajor = 5

// CheckVersion refuses an engine that is too old, in the user's words.
func CheckVersion(info runtime.Info) error {
	v, err := parseVersion(info)
	if err != nil {
		return err
	}
	if v.LT(oldest()) {
		return fmt.Errorf("podman %s is too old: install 4.3 or newer (Debian 12 has it)", info.Version)
	}
	return nil
}

// Lacks tells what this version of Podman cannot do that a newer one can, and that a
// version is newer than any that is known to work; each in the user's words. An
// engine that CheckVersion refuses lacks nothing.
func Lacks(info runtime.Info) (all []string) {
	v, err := parseVersion(info)
	if err != nil || v.LT(oldest()) {
		return nil
	}
	for _, a := range abilities() {
		if v.LT(a.since) {
			all = append(all, fmt.Sprintf("before %d.%d %s", a.since.Major, a.since.Minor, a.without))
		}
	}
	if v.Major > testedMajor {
		all = append(all, fmt.Sprintf("it is newer than rookery was made for (4.3 to %d.x): its API may refuse what rookery asks", testedMajor))
	}
	return all
}

// parseVersion reads a version; what distributions append to one (4.9.5-rhel) does not make it older.
func parseVersion(info runtime.Info) (semver.Version, error) {
	v, err := semver.ParseTolerant(info.Version)
	if err != nil {
		return semver.Version{}, fmt.Errorf("podman says its version is %q: %w", info.Version, err)
	}
	v.Pre = nil
	return v, nil
}
