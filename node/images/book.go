package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"

	"github.com/rundigitalplatform/rookery/runtime"
)

// book is what is remembered of images that were pulled. The file is JSON.
type book struct {
	Images map[string]*entry `json:"images,omitempty"` // by id
	// Pulling counts the pulls under way by reference: what they had brought when the
	// power went counts as pulled, by nobody knows whom.
	Pulling map[string]int `json:"pulling,omitempty"`
}

// entry is one image.
type entry struct {
	Refs   []string           `json:"refs"` // it was pulled by
	Access map[string]*access `json:"access,omitempty"`
	Pulled time.Time          `json:"pulled"`
	Used   time.Time          `json:"used"`
}

// access says who may use an image without asking its registry, by repository.
type access struct {
	Anyone  bool     `json:"anyone,omitempty"` // it was pulled without a login of a pod's
	Secrets []secret `json:"secrets,omitempty"`
}

// secret is a login that the image was pulled with. The hash is kubelet's, salted by nothing: the
// file is readable by root only.
type secret struct {
	Namespace, Name, UID, Hash string
}

// maxSecrets of an image: more are not remembered, and their pods ask the registry.
const maxSecrets = 100

func readBook(path string) (book, error) {
	b := book{Images: map[string]*entry{}, Pulling: map[string]int{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if b.Images == nil {
		b.Images = map[string]*entry{}
	}
	if b.Pulling == nil {
		b.Pulling = map[string]int{}
	}
	if err != nil {
		return b, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// save writes the book; a failure is told, and costs no more than what New says.
func (m *Manager) save() {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	data, err := json.Marshal(m.book)
	m.mu.Unlock()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(m.cfg.File), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(m.cfg.File, data, 0o600, renameio.WithTempDir(filepath.Dir(m.cfg.File)))
	}
	if err != nil {
		m.cfg.Logger.Warn("remember what was pulled", "error", err)
	}
}

// begin and end bracket a pull.
func (b *book) begin(ref string) { b.Pulling[ref]++ }

func (b *book) end(ref string) {
	if b.Pulling[ref]--; b.Pulling[ref] <= 0 {
		delete(b.Pulling, ref)
	}
}

// pulled notes an image that a pull brought; login nil: without one of a pod's. An image
// that was here before and is not in the book was loaded by hand, and stays so.
func (b *book) pulled(ref string, image runtime.Image, login *credentialprovider.TrackedAuthConfig, now time.Time) {
	e := b.Images[image.ID]
	if e == nil {
		e = &entry{Access: map[string]*access{}, Pulled: now}
		b.Images[image.ID] = e
	}
	e.Used = now
	if !slices.Contains(e.Refs, ref) {
		e.Refs = append(e.Refs, ref)
	}
	b.allow(e, ref, login)
}

// allow lets the pods that have this login use the image.
func (b *book) allow(e *entry, ref string, login *credentialprovider.TrackedAuthConfig) {
	if e.Access == nil {
		e.Access = map[string]*access{}
	}
	a := e.Access[repository(ref)]
	if a == nil {
		a = &access{}
		e.Access[repository(ref)] = a
	}
	if login == nil || login.Source == nil || login.Source.Secret == nil {
		a.Anyone = true
		return
	}
	s := coordinates(login)
	i := slices.IndexFunc(a.Secrets, func(have secret) bool { return have.UID == s.UID && have.Name == s.Name })
	switch {
	case i >= 0:
		a.Secrets[i] = s
	case len(a.Secrets) < maxSecrets:
		a.Secrets = append(a.Secrets, s)
	}
}

func coordinates(login *credentialprovider.TrackedAuthConfig) secret {
	from := login.Source.Secret
	return secret{from.Namespace, from.Name, from.UID, login.AuthConfigHash}
}

// allowed says whether a pod with these logins may use a local image without asking
// its registry. Whatever was not pulled is everybody's.
func (b *book) allowed(ref, id string, logins []credentialprovider.TrackedAuthConfig) bool {
	e := b.Images[id]
	if e == nil {
		return b.Pulling[ref] == 0
	}
	a := e.Access[repository(ref)]
	if a == nil {
		return false
	}
	if a.Anyone {
		return true
	}
	for i := range logins {
		if logins[i].Source == nil || logins[i].Source.Secret == nil {
			continue
		}
		s := coordinates(&logins[i])
		for _, have := range a.Secrets {
			same := have.UID == s.UID && have.Name == s.Name && have.Namespace == s.Namespace
			if same || have.Hash != "" && have.Hash == s.Hash {
				return true
			}
		}
	}
	return false
}

// believe takes times that lie in the future for now: they were told by a clock that has
// been set back since, and their images would be young for as long as it was wrong. Times
// too far in the past do no harm, as nothing is too old in a daemon that is not as old itself.
func (b *book) believe(now time.Time) {
	for _, e := range b.Images {
		if e.Pulled.After(now) {
			e.Pulled = now
		}
		if e.Used.After(now) {
			e.Used = now
		}
	}
}

func (b *book) use(id string, at time.Time) {
	if e := b.Images[id]; e != nil {
		e.Used = at
	}
}

// drop makes an image one that was loaded by hand.
func (b *book) drop(id string) bool {
	_, ok := b.Images[id]
	delete(b.Images, id)
	return ok
}

// keep forgets images that are not here any more, and says whether there were any.
func (b *book) keep(all []runtime.Image) bool {
	n := len(b.Images)
	maps.DeleteFunc(b.Images, func(id string, _ *entry) bool {
		return !slices.ContainsFunc(all, func(image runtime.Image) bool { return image.ID == id })
	})
	return len(b.Images) < n
}

// owns says whether all names of an image come from the book's pulls: a name that
// somebody else gave it is somebody else's interest in it.
func (e *entry) owns(image *runtime.Image) bool {
	for _, name := range image.Names {
		if !slices.ContainsFunc(e.Refs, func(ref string) bool { return is(ref, name) }) {
			return false
		}
	}
	return true
}

// is says whether a full name may be what ref stands for. Where short names are looked
// for is the machine's affair, so of these only what follows the registry counts.
func is(ref, name string) bool {
	candidates := runtime.Names(ref)
	if slices.Contains(candidates, name) {
		return true
	}
	if len(candidates) < 2 || strings.HasPrefix(name, "localhost/") {
		return false
	}
	_, rest, _ := strings.Cut(name, "/")
	return rest == strings.TrimPrefix(candidates[0], "localhost/")
}

// names says whether one of the references stands for the image.
func names(refs []string, image *runtime.Image) bool {
	for _, ref := range refs {
		if ref == image.ID || slices.Contains(image.Digests, ref) {
			return true
		}
		for _, name := range image.Names {
			if is(ref, name) {
				return true
			}
		}
		for _, candidate := range runtime.Names(ref) { // a digest, of a short name
			if slices.Contains(image.Digests, candidate) {
				return true
			}
		}
	}
	return false
}

// repository is a reference without tag and digest.
func repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}
