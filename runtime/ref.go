package runtime

import "strings"

// Names returns the fully qualified names that ref may stand for, the one to
// try first coming first. A name without a registry is looked for among what
// was built or loaded on this machine (localhost/) and then at Docker Hub, as
// `hello:1` is in every manifest; a name without a tag or digest means :latest.
// An image id ("sha256:…") stands for itself.
//
// PullImage pulls the last of them: nothing is ever pulled from localhost.
func Names(ref string) []string {
	if ref == "" {
		return nil
	}
	if strings.HasPrefix(ref, "sha256:") {
		return []string{ref}
	}
	name := ref
	if !strings.Contains(name, "@") && !strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		name += ":latest"
	}
	first, rest, slash := strings.Cut(name, "/")
	if slash && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if first == "docker.io" && !strings.Contains(rest, "/") {
			name = "docker.io/library/" + rest
		}
		if first == "index.docker.io" {
			name = Names("docker.io/" + rest)[0]
		}
		return []string{name}
	}
	hub := "docker.io/" + name
	if !slash {
		hub = "docker.io/library/" + name
	}
	return []string{"localhost/" + name, hub}
}
