// Package rookery holds no code: the rooms are in the folders. Its test keeps
// the walls between them.
package rookery

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/rundigitalplatform/rookery/"

// rooms lists, for each room, which others it may import. What is not listed is
// a wall; the reasons are those of docs/design/rooms.md.
var rooms = map[string][]string{
	"raftstore":  {},            // knows neither Kubernetes, nor who is here, nor how bytes travel
	"cluster":    {"raftstore"}, // peer records and tokens are keys in the store
	"runtime":    {},            // a pod on this machine, for whoever wants one
	"network":    {},            // packets; told of pods by pid, of Services by listers
	"dnsserver":  {},            // names, from listers
	"ingress":    {},            // requests, from listers
	"apiserver":  {"raftstore"}, // every object is a key in the store
	"node":       {"runtime"},   // talks to the API as any client, to containers through runtime
	"scheduler":  {},            // talks to the API as any client
	"controller": {},            // talks to the API as any client
	"configs":    {},            // the sample is a user's program
	"cmd":        {"raftstore", "cluster", "runtime", "network", "dnsserver", "ingress", "apiserver", "node", "scheduler", "controller", "test"},
	"test":       {"runtime"}, // the lab drives the real binary; bench measures the engine beside it
}

// each calls f for every Go file of ours that is not a test.
func each(t *testing.T, f func(path string, file *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "bin" || d.Name() == "third_party"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		f(path, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	each(t, func(path string, file *ast.File) {
		room, _, _ := strings.Cut(path, "/")
		may, known := rooms[room]
		if !known {
			t.Errorf("%s is in no room; docs/design/rooms.md says what there is", path)
			return
		}
		for _, imp := range file.Imports {
			target, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module)
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(target, "/")
			ok := to == room
			for _, m := range may {
				ok = ok || to == m
			}
			if !ok {
				t.Errorf("%s imports %s: there is a wall between %s and %s", path, target, room, to)
			}
		}
	})
}

func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	doc := map[string]bool{}
	each(t, func(path string, file *ast.File) {
		dir := filepath.Dir(path)
		doc[dir] = doc[dir] || (file.Doc != nil && len(file.Doc.Text()) > 40)
	})
	for dir, ok := range doc {
		if !ok {
			t.Errorf("package %s has no doc comment that says what it does", dir)
		}
	}
}

// Composition is written out in cmd: no init functions, but where the order of
// initialisation itself is the point.
func TestNothingHappensAtImport(t *testing.T) {
	each(t, func(path string, file *ast.File) {
		if path == "cmd/rookery/quietqueues/quietqueues.go" {
			return
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function", path)
			}
		}
	})
}
