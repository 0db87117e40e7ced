package spec

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/securitycontext"

	"github.com/rundigitalplatform/rookery/runtime"
)

func applySecurity(out *runtime.ContainerSpec, pod *v1.Pod, c *v1.Container, in Input) error {
	sc := securitycontext.DetermineEffectiveSecurityContext(pod, c)
	if err := verifyNonRoot(sc, in.Image); err != nil {
		return fmt.Errorf("%w (pod: %q, container: %s)", err, fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID), c.Name)
	}
	out.User, out.ImageGroups = user(sc, in.Image), true
	if strictGroups(pod) {
		out.ImageGroups = false
		if out.User == "" {
			out.User = cmp.Or(in.Image.User, "0")
		}
	}
	if psc := pod.Spec.SecurityContext; psc != nil {
		out.Groups = append(out.Groups, psc.SupplementalGroups...)
		if psc.FSGroup != nil {
			out.Groups = append(out.Groups, *psc.FSGroup)
		}
	}
	out.Privileged = isTrue(sc.Privileged)
	out.ProcUnmasked = sc.ProcMount != nil && *sc.ProcMount == v1.UnmaskedProcMount
	out.ReadOnlyRootfs = isTrue(sc.ReadOnlyRootFilesystem)
	out.NoNewPrivileges = securitycontext.AddNoNewPrivileges(sc)
	if sc.Capabilities != nil {
		out.CapAdd = capabilities(sc.Capabilities.Add)
		out.CapDrop = capabilities(sc.Capabilities.Drop)
	}
	applyAppArmor(out, pod, c)
	if in.Host.SELinux {
		out.SELinux = seLinux(sc.SELinuxOptions)
	}
	return applySeccomp(out, pod, c, in.SeccompDir)
}

func strictGroups(pod *v1.Pod) bool {
	sc := pod.Spec.SecurityContext
	return sc != nil && sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict
}

func applyAppArmor(out *runtime.ContainerSpec, pod *v1.Pod, c *v1.Container) {
	p := appArmor(pod, c)
	switch {
	case p == nil:
	case p.Type == v1.AppArmorProfileTypeUnconfined:
		out.AppArmor = "unconfined"
	case p.Type == v1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		out.AppArmor = *p.LocalhostProfile
	}
}

func seLinux(o *v1.SELinuxOptions) []string {
	if o == nil {
		return nil
	}
	var out []string
	for _, part := range [][2]string{{"user", o.User}, {"role", o.Role}, {"type", o.Type}, {"level", o.Level}} {
		if part[1] != "" {
			out = append(out, part[0]+":"+part[1])
		}
	}
	return out
}

// verifyNonRoot keeps the promise of runAsNonRoot, in kubelet's words.
func verifyNonRoot(sc *v1.SecurityContext, image runtime.Image) error {
	if !isTrue(sc.RunAsNonRoot) {
		return nil
	}
	if sc.RunAsUser != nil {
		if *sc.RunAsUser == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy")
		}
		return nil
	}
	name, _, _ := strings.Cut(image.User, ":")
	uid, err := strconv.ParseInt(name, 10, 64)
	switch {
	case name == "" || err == nil && uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root")
	case err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", name)
	}
	return nil
}

func user(sc *v1.SecurityContext, image runtime.Image) string {
	switch {
	case sc.RunAsUser == nil && sc.RunAsGroup == nil:
		return ""
	case sc.RunAsGroup == nil:
		return strconv.FormatInt(*sc.RunAsUser, 10)
	case sc.RunAsUser == nil:
		name, _, _ := strings.Cut(image.User, ":")
		if name == "" {
			name = "0"
		}
		return name + ":" + strconv.FormatInt(*sc.RunAsGroup, 10)
	}
	return strconv.FormatInt(*sc.RunAsUser, 10) + ":" + strconv.FormatInt(*sc.RunAsGroup, 10)
}

func capabilities(in []v1.Capability) []string {
	var out []string
	for _, c := range in {
		out = append(out, strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
	}
	return out
}

func applySeccomp(out *runtime.ContainerSpec, pod *v1.Pod, c *v1.Container, dir string) error {
	var p *v1.SeccompProfile
	if pod.Spec.SecurityContext != nil {
		p = pod.Spec.SecurityContext.SeccompProfile
	}
	if c.SecurityContext != nil && c.SecurityContext.SeccompProfile != nil {
		p = c.SecurityContext.SeccompProfile
	}
	switch {
	case out.Privileged:
		out.SeccompUnconfined = true // as every Kubernetes runtime does
	case p == nil:
		// Kubernetes' default is Unconfined; the engine's own profile is the safer one, and
		// kubelet offers the same as --seccomp-default.
	case p.Type == v1.SeccompProfileTypeUnconfined:
		out.SeccompUnconfined = true
	case p.Type == v1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return fmt.Errorf("seccomp profile of type Localhost names no file")
		}
		out.SeccompProfile = filepath.Join(dir, filepath.Clean("/"+*p.LocalhostProfile))
	}
	return nil
}
