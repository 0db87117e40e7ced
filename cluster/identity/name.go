package identity

import (
	"fmt"
	"strings"
)

const (
	// PeerOrganization is the O of a peer's certificate, the group by which
	// Kubernetes' node authorizer knows it.
	PeerOrganization = "system:nodes"
	// PeerUserPrefix with the peer's name is the CN of its certificate.
	PeerUserPrefix = "system:node:"
	// PeerDomain with the peer's name before it is the DNS name by which a
	// dialling peer checks whom it reached.
	PeerDomain = "peer.rookery"
)

// NameError says that a name cannot be a peer's.
type NameError struct{ Name, Reason string }

func (e *NameError) Error() string {
	return fmt.Sprintf("%q cannot be a peer's name: %s; use lower-case letters, digits and '-', at most 63, "+
		"beginning and ending with a letter or digit (set it with --name)", e.Name, e.Reason)
}

// ValidateName returns a [*NameError] unless name is a DNS label (RFC 1123) in
// lower case: it becomes a Kubernetes Node, a DNS name and a Raft server.
func ValidateName(name string) error {
	switch {
	case name == "":
		return &NameError{name, "it is empty"}
	case len(name) > 63:
		return &NameError{name, fmt.Sprintf("it has %d characters", len(name))}
	case strings.Trim(name, "-") != name:
		return &NameError{name, "it begins or ends with '-'"}
	}
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		case c == '.':
			return &NameError{name, "it has a dot (use the first part of the host name)"}
		case 'A' <= c && c <= 'Z':
			return &NameError{name, "it has upper-case letters"}
		default:
			return &NameError{name, fmt.Sprintf("it has the character %q", c)}
		}
	}
	return nil
}

// PeerDNSName is the name in a peer's certificate by which others check it.
func PeerDNSName(name string) string { return name + "." + PeerDomain }
