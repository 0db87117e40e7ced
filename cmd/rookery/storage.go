package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/rundigitalplatform/rookery/cmd/rookery/check"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman"
)

// storage is Podman's, as far as a power loss can break it; node.Storage.
type storage struct {
	podman   *podman.Runtime
	dir      string // the data directory
	thorough bool   // the last daemon did not end in order
	broken   []runtime.Damage
}

// tornFile in the data directory keeps what was set aside before the API was there to be
// told: this start may end without Podman.
const tornFile = "podman-torn.json"

// whereFile in the data directory says where Podman keeps its storage, for a start at
// which Podman cannot be asked.
const whereFile = "podman-storage"

// place is where Podman's storage was when it answered last; empty: it never did.
func (s *storage) place() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, whereFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// mendFiles sets torn files aside with which Podman would not start.
func (s *storage) mendFiles(ctx context.Context, log *slog.Logger) error {
	if pid, err := running(s.dir); err != nil || pid != 0 {
		return err // lock says it better
	}
	at, err := s.place()
	if err != nil || at == "" {
		return err
	}
	text, err := os.ReadFile(filepath.Join(s.dir, tornFile))
	if err == nil {
		err = json.Unmarshal(text, &s.broken)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("read what was set aside of Podman's storage", "error", err)
	}
	found, err := podman.MendFiles(ctx, at)
	if err != nil {
		log.Warn("mend Podman's storage", "error", err)
	}
	if len(found) == 0 {
		return nil
	}
	s.broken = append(s.broken, found...)
	if text, err = json.Marshal(s.broken); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(s.dir, tornFile), text, 0o600)
}

// explain adds what was found broken to why this machine cannot be a peer.
func (s *storage) explain(err error) error {
	for _, d := range s.broken {
		err = fmt.Errorf("%w. %s; %s", err, d.What, d.Done)
	}
	return err
}

// Mend implements node.Storage.
func (s *storage) Mend(ctx context.Context) ([]runtime.Damage, error) {
	found, err := s.podman.Mend(ctx, s.thorough || len(s.broken) > 0, spec.IsOurs)
	if errors.Is(err, runtime.ErrUnavailable) {
		return found, err // it is tried again
	}
	found, s.broken = append(s.broken, found...), nil
	gone := os.Remove(filepath.Join(s.dir, tornFile))
	if errors.Is(gone, fs.ErrNotExist) {
		gone = nil
	}
	if err == nil {
		err = s.remember(ctx)
	}
	return found, errors.Join(err, gone)
}

// Verify implements node.Storage: only after a crash, for it reads all that there is.
func (s *storage) Verify(ctx context.Context) ([]runtime.Damage, error) {
	if !s.thorough {
		return nil, nil
	}
	return s.podman.Verify(ctx)
}

// remember writes down where the storage is, if that is news.
func (s *storage) remember(ctx context.Context) error {
	info, err := s.podman.Info(ctx)
	if err != nil {
		return err
	}
	if was, err := s.place(); err == nil && was == info.StoreDir {
		return nil
	}
	return os.WriteFile(filepath.Join(s.dir, whereFile), []byte(info.StoreDir+"\n"), 0o600)
}

// checkStorage tells what is broken there.
func checkStorage(dir string) check.Finding {
	f := check.Finding{What: "podman's storage", Level: check.OK, Found: dir + ", its lists and images are whole"}
	broken, err := podman.CheckFiles(dir)
	if err != nil {
		broken = append(broken, err.Error())
	}
	if len(broken) > 0 {
		f.Level, f.Found = check.Warn, strings.Join(broken, "; ")
		f.Cure = "a start of rookery sets torn files aside and removes damaged images; load again what was loaded by hand"
	}
	return f
}
