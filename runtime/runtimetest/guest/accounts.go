package guest

import "fmt"

// The image of Program has one user beside root, who is in a second group.
const (
	User  = "www"
	UID   = 1000
	GID   = 1500
	Extra = 1600
)

// Accounts are the files of the image that say so, by path.
func Accounts() map[string]string {
	return map[string]string{
		"/etc/passwd": fmt.Sprintf("root:x:0:0::/:\n%s:x:%d:%d::/:\n", User, UID, GID),
		"/etc/group":  fmt.Sprintf("root:x:0:\n%s:x:%d:\nextra:x:%d:%s\n", User, GID, Extra, User),
	}
}
