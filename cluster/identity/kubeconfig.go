package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// DefaultServer is the API as a user on the peer itself reaches it.
const DefaultServer = "https://127.0.0.1:6443"

const kubeconfigFormat = `apiVersion: v1
kind: Config
clusters:
- name: rookery
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: rookery
  context:
    cluster: rookery
    user: %s
current-context: rookery
`

// Kubeconfig makes a kubeconfig with a new client certificate in it; see
// [Identity.IssueClient] for user, groups and ttl. An empty server means [DefaultServer].
func (id *Identity) Kubeconfig(server, user string, groups []string, ttl time.Duration) ([]byte, error) {
	if server == "" {
		server = DefaultServer
	}
	cert, key, err := id.IssueClient(user, groups, ttl)
	if err != nil {
		return nil, err
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, kubeconfigFormat, quote(server), b64(id.CAPEM()), quote(user), b64(cert), b64(key), quote(user)), nil
}

// quote makes a YAML string: JSON's are YAML's.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // a string always encodes
		panic(err)
	}
	return string(b)
}

// KubeconfigPath is the administrator's kubeconfig in the data directory.
func (id *Identity) KubeconfigPath() string { return filepath.Join(id.dir, "admin.kubeconfig") }

// EnsureKubeconfig writes the administrator's kubeconfig unless there is one for
// that server (empty: [DefaultServer]). It can always be made again from the CA, so it
// need not be part of the atomic whole.
func (id *Identity) EnsureKubeconfig(server string) error {
	if server == "" {
		server = DefaultServer
	}
	old, err := os.ReadFile(id.KubeconfigPath())
	if err == nil && bytes.Contains(old, []byte("server: "+quote(server)+"\n")) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	data, err := id.Kubeconfig(server, "admin", []string{"system:masters"}, 0)
	if err != nil {
		return err
	}
	return WriteFileAtomic(id.KubeconfigPath(), data)
}
