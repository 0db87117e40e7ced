package volumes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

type tokenKey struct {
	uid          types.UID
	volume, path string
}

type issuedToken struct {
	token string
	renew time.Time
}

// retryToken is when a token that could not be renewed is asked for again.
const retryToken = time.Minute

// token puts a service account token into the projection, renewed at 80 % of its
// life as kubelet does, so that a program that reads the file now and then never
// holds an expired one. Where the API does not issue one, the one on disk stays.
func (p *projection) token(ctx context.Context, src *v1.ServiceAccountTokenProjection) error {
	life := time.Hour
	if src.ExpirationSeconds != nil {
		life = time.Duration(*src.ExpirationSeconds) * time.Second
	}
	key := tokenKey{p.pod.UID, p.name, src.Path}
	p.m.mu.Lock()
	have, ok := p.m.issued[key]
	p.m.mu.Unlock()
	now := time.Now()
	if !ok || !now.Before(have.renew) {
		token, expires, err := p.m.tokens.Token(ctx, p.pod, src.Audience, life)
		switch {
		case err == nil:
			have = issuedToken{token, now.Add(expires.Sub(now) * 8 / 10)}
		case ok:
			have.renew = now.Add(retryToken)
		default:
			old, readErr := os.ReadFile(filepath.Join(p.m.volumeDir(p.pod.UID, p.name), src.Path))
			if readErr != nil {
				return fmt.Errorf("get token of service account %q: %w", p.pod.Spec.ServiceAccountName, err)
			}
			have = issuedToken{string(old), now.Add(retryToken)}
		}
		p.m.mu.Lock()
		p.m.issued[key] = have
		p.m.mu.Unlock()
	}
	f := file{data: []byte(have.token), mode: os.FileMode(p.mode) & os.ModePerm, uid: -1}
	if uid := onlyUser(p.pod); uid != nil || fsGroup(p.pod) != nil {
		f.mode = 0o600
		if uid != nil {
			f.uid = int(*uid)
		}
	}
	p.files[src.Path] = f
	if p.next.IsZero() || have.renew.Before(p.next) {
		p.next = have.renew
	}
	return nil
}

// ForgetTokens has all tokens asked for anew when their volumes are next set up: they may
// have expired before their time, for the clock was set.
func (m *Manager) ForgetTokens() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.issued)
}

// onlyUser is the user that all containers of the pod run as, if the spec says so.
func onlyUser(pod *v1.Pod) *int64 {
	var base, found *int64
	if pod.Spec.SecurityContext != nil {
		base = pod.Spec.SecurityContext.RunAsUser
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			uid := base
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				uid = sc.RunAsUser
			}
			if uid == nil || found != nil && *found != *uid {
				return nil
			}
			found = uid
		}
	}
	return found
}
