package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// storage is what Podman leaves of one image of two layers and a container.
func storage(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	config := `{"architecture":"amd64"}`
	sum := sha256.Sum256([]byte(config))
	key := "sha256:" + hex.EncodeToString(sum[:])
	files := map[string]string{
		"overlay-layers/layers.json":                                             `[{"id":"aaaa"},{"id":"bbbb","parent":"aaaa"}]`,
		"overlay-images/images.json":                                             fmt.Sprintf(`[{"id":"cccc","names":["localhost/web:1"],"layer":"bbbb","big-data-names":["manifest",%q],"big-data-sizes":{"manifest":2,%q:%d}}]`, key, key, len(config)),
		"overlay-containers/containers.json":                                     `[{"id":"dddd","image":"cccc","names":["web"]}]`,
		"overlay-images/cccc/manifest":                                           "{}",
		"overlay-images/cccc/=" + base64.StdEncoding.EncodeToString([]byte(key)): config,
		"overlay/aaaa/link":                                                      "SHORT",
		"overlay/aaaa/diff/bin/sh":                                               "program",
		"overlay/bbbb/link":                                                      "OTHER",
		"overlay/bbbb/diff/etc/motd":                                             "hello",
		"overlay-layers/aaaa.tar-split.gz":                                       split(t, map[string]int{"bin/sh": 7, "bin/": 0}),
		"overlay-layers/bbbb.tar-split.gz":                                       split(t, map[string]int{"etc/motd": 5, "etc/.wh.gone": 0}),
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "libpod"), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "libpod", "bolt_state.db"), 0o600, nil)
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// split is a layer's list of files with their sizes.
func split(t *testing.T, files map[string]int) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for name, size := range files {
		if err := json.NewEncoder(z).Encode(map[string]any{"type": 2, "payload": []byte("header")}); err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(z).Encode(map[string]any{"type": 1, "name": name, "size": size}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// sqlite is a database of so many pages, of which so many bytes are there.
func sqlite(pageSize uint16, pages uint32, size int) []byte {
	file := make([]byte, size)
	copy(file, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(file[16:], pageSize)
	binary.BigEndian.PutUint32(file[28:], pages)
	return file
}

// text is what was found, a line each.
func text(f Findings) string {
	var b strings.Builder
	for _, torn := range f.Torn {
		fmt.Fprintf(&b, "%s: %s\n", torn.What, torn.Why)
	}
	for _, img := range f.Images {
		fmt.Fprintf(&b, "image %s: %s\n", img, img.Why)
	}
	return b.String()
}

func TestLook(t *testing.T) {
	cut := func(name string, size int64) func(string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, name), size) }
	}
	gone := func(name string) func(string) error {
		return func(dir string) error { return os.RemoveAll(filepath.Join(dir, name)) }
	}
	for name, c := range map[string]struct {
		broken func(dir string) error
		want   string // a part of each line
	}{
		"nothing":            {func(string) error { return nil }, ""},
		"another driver":     {gone("overlay"), ""},
		"no containers yet":  {gone("overlay-containers"), ""},
		"no database yet":    {gone("libpod"), ""},
		"an empty database":  {cut("libpod/bolt_state.db", 0), ""},
		"database cut":       {cut("libpod/bolt_state.db", 1000), "Podman's database of containers: it has 1000 bytes of 16384"},
		"database cut later": {cut("libpod/bolt_state.db", 9000), "Podman's database of containers: it has 9000 bytes of 16384"},
		"no SQLite":          {func(dir string) error { return os.WriteFile(filepath.Join(dir, "db.sql"), make([]byte, 4096), 0o600) }, "Podman's database of containers: it is not a database any more"},
		"SQLite": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "db.sql"), sqlite(4096, 2, 8192), 0o600)
		}, ""},
		"SQLite cut": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "db.sql"), sqlite(4096, 3, 8192), 0o600)
		}, "Podman's database of containers: it has 8192 bytes of 12288"},
		"containers cut":        {cut("overlay-containers/containers.json", 20), "Podman's list of containers: it is torn"},
		"images empty":          {cut("overlay-images/images.json", 0), "Podman's list of images: it is torn"},
		"layers cut":            {cut("overlay-layers/layers.json", 20), "Podman's list of layers: it is torn|image localhost/web:1: its layer bbbb is in no list"},
		"manifest empty":        {cut("overlay-images/cccc/manifest", 0), "image localhost/web:1: its manifest has 0 bytes instead of 2"},
		"manifest gone":         {gone("overlay-images/cccc/manifest"), "image localhost/web:1: its manifest is missing"},
		"layer gone":            {gone("overlay/aaaa"), "image localhost/web:1: its layer aaaa is missing"},
		"link empty":            {cut("overlay/bbbb/link", 0), "image localhost/web:1: the short name of its layer bbbb is lost"},
		"file empty":            {cut("overlay/aaaa/diff/bin/sh", 0), "image localhost/web:1: in its layer aaaa the file bin/sh has 0 bytes instead of 7"},
		"file gone":             {gone("overlay/bbbb/diff/etc/motd"), "image localhost/web:1: in its layer bbbb the file etc/motd is missing"},
		"list of files cut":     {cut("overlay-layers/aaaa.tar-split.gz", 30), "image localhost/web:1: in its layer aaaa the list of files is torn"},
		"list of files missing": {gone("overlay-layers/aaaa.tar-split.gz"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storage(t)
			if err := c.broken(dir); err != nil {
				t.Fatal(err)
			}
			found, err := Look(dir, Options{Thorough: true})
			if err != nil {
				t.Fatal(err)
			}
			if torn, err := LookAtLists(dir); err != nil || text(Findings{Torn: torn}) != text(Findings{Torn: found.Torn}) {
				t.Errorf("of the lists alone %q, %v", text(Findings{Torn: torn}), err)
			}
			got := strings.Split(strings.TrimSpace(text(found)), "\n")
			want := strings.Split(c.want, "|")
			if len(got) != len(want) {
				t.Fatalf("found %q, want %q", got, want)
			}
			for i := range want {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("found %q, want %q", got[i], want[i])
				}
			}
		})
	}
}

func TestOnlyThoroughlyAreFilesCompared(t *testing.T) {
	dir := storage(t)
	if err := os.Truncate(filepath.Join(dir, "overlay/aaaa/diff/bin/sh"), 0); err != nil {
		t.Fatal(err)
	}
	if found, err := Look(dir, Options{}); err != nil || text(found) != "" {
		t.Errorf("found %q, %v", text(found), err)
	}
}

// A layer that is not here may be in another store.
func TestOtherStores(t *testing.T) {
	dir := storage(t)
	if err := os.WriteFile(filepath.Join(dir, "overlay-layers", "layers.json"), []byte(`[{"id":"bbbb","parent":"aaaa"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Look(dir, Options{Others: true}); err != nil || text(found) != "" {
		t.Errorf("found %q, %v", text(found), err)
	}
	if found, err := Look(dir, Options{}); err != nil || text(found) != "image localhost/web:1: its layer aaaa is in no list\n" {
		t.Errorf("found %q, %v", text(found), err)
	}
}

func TestSetAside(t *testing.T) {
	dir := storage(t)
	path := filepath.Join(dir, "overlay-layers", "layers.json")
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	found, err := Look(dir, Options{})
	if err != nil || len(found.Torn) != 1 {
		t.Fatal(text(found), err)
	}
	podman, err := os.OpenFile(filepath.Join(dir, "overlay-layers", "layers.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(podman.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 3*lockPause)
	defer cancel()
	if _, err := SetAside(short, found.Torn[0], time.Now()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while Podman holds the list: %v", err)
	}
	time.AfterFunc(3*lockPause, func() { podman.Close() })
	to, err := SetAside(t.Context(), found.Torn[0], time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil || to != path+".torn-20260102T030405" {
		t.Fatal(to, err)
	}
	if list, err := filepath.Glob(path + "*"); err != nil || len(list) != 2 {
		t.Errorf("there are %q, %v", list, err)
	}
	if rest, err := os.ReadFile(path); err != nil || string(rest) != `[{"id":"aaaa"}]` {
		t.Errorf("what is left is %s, %v", rest, err)
	}
	if torn, err := os.ReadFile(to); err != nil || len(torn) != 20 {
		t.Errorf("what was set aside is %s, %v", torn, err)
	}
	if writer, err := os.ReadFile(filepath.Join(dir, "overlay-layers", "layers.lock")); err != nil || len(writer) != writerSize {
		t.Errorf("the last writer is %x, %v", writer, err)
	}
	if found, err = Look(dir, Options{}); err != nil || len(found.Torn) != 0 || len(found.Images) != 1 {
		t.Errorf("after that: %q, %v", text(found), err)
	}
}

func TestSetDatabaseAside(t *testing.T) {
	dir := storage(t)
	path := filepath.Join(dir, "libpod", "bolt_state.db")
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	found, err := Look(dir, Options{})
	if err != nil || len(found.Torn) != 1 {
		t.Fatal(text(found), err)
	}
	if _, err := SetAside(t.Context(), found.Torn[0], time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the database is still there: %v", err)
	}
}
