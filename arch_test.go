// Package lockstep_test holds the rules of the house that concern every package: who may import whom, what the
// pure packages must not touch, how large files may grow, and that sources are formatted and checked.
package lockstep_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lockstep-sync/lockstep"

// maxLines of one source file.
const maxLines = 600

// An arrow lets the packages that match from import those of this module that match one of to. A pattern is a
// package's directory, or with /... that directory and all below it. The first arrow whose from matches counts; a
// package without an arrow may not exist: add it here and to ARCHITECTURE.md.
type arrow struct {
	from string
	to   []string
}

func arrows() []arrow {
	return []arrow{
		{".", nil},
		{"cmd/lockstep", []string{"api", "internal/cli", "internal/server"}},
		{"bench/...", []string{"api", "client", "bench/...", "internal/farm", "internal/access", "internal/engine/...", "internal/kv/...", "internal/machine/...", "internal/server"}},
		{"test", []string{"api", "client", "internal/farm", "internal/kv"}},
		{"client", []string{"api"}},
		{"api", nil},

		{"internal/cli", []string{"api", "client", "internal/cli/demo"}},
		{"internal/cli/demo", []string{"api", "client"}},
		{"internal/farm", []string{"api", "client"}},
		{"internal/server", []string{"api", "internal/door/...", "internal/backup", "internal/control", "internal/files/...", "internal/access", "internal/engine/...", "internal/machine", "internal/kv/...", "internal/vfs"}},
		{"internal/door/http", []string{"api"}},
		{"internal/backup", nil},

		{"internal/control", []string{"api", "internal/machine", "internal/kv"}},
		{"internal/files", []string{"api", "internal/files/...", "internal/machine", "internal/kv", "internal/vfs"}},
		{"internal/fixture", nil},
		{"internal/files/manifest/...", []string{"internal/machine", "internal/kv"}},
		{"internal/files/content/...", []string{"internal/files/content/...", "internal/files/manifest", "internal/kv", "internal/vfs"}},
		{"internal/files/place", []string{"internal/files/manifest", "internal/vfs"}},
		{"internal/files/scan", []string{"internal/files/manifest", "internal/files/place", "internal/vfs"}},
		{"internal/files/watch", []string{"internal/vfs"}},
		{"internal/access", []string{"api"}},

		{"internal/engine", []string{"internal/engine/...", "internal/machine", "internal/kv"}},
		{"internal/engine/core", nil},
		{"internal/engine/catchup", nil},
		{"internal/engine/ranges", []string{"internal/kv"}},
		{"internal/engine/replica", []string{"internal/engine/core", "internal/machine", "internal/kv"}},
		{"internal/engine/logstore/...", []string{"internal/engine/logstore"}},
		{"internal/engine/transport", []string{"api", "internal/access"}},

		{"internal/machine", []string{"internal/kv"}},
		{"internal/machine/machinetest", []string{"internal/machine", "internal/kv"}},
		{"internal/kv/guard", nil},
		{"internal/kv", []string{"internal/kv/guard", "internal/vfs"}},
		{"internal/kv/kvtest", []string{"internal/kv"}},
		{"internal/vfs/...", []string{"internal/vfs"}},
		{"internal/sim/...", []string{"internal/sim/...", "internal/engine/...", "internal/files/manifest", "internal/control", "internal/machine/...", "internal/kv/..."}},
	}
}

// ownedDependencies are modules that only some packages may touch, so that replacing one stays possible.
func ownedDependencies() []arrow {
	return []arrow{
		{"github.com/spf13/", []string{"internal/cli"}},
		{"github.com/BurntSushi/toml", []string{"internal/cli"}},
		{"golang.org/x/term", []string{"internal/cli/..."}},
		{"github.com/prometheus/", []string{"internal/door/http", "internal/server"}},
		{"github.com/cockroachdb/pebble", []string{"internal/kv/...", "internal/machine/machinetest", "internal/sim/...", "bench/..."}},
		{"go.etcd.io/raft", []string{"internal/engine/...", "internal/control", "internal/server", "internal/sim/...", "bench/..."}},
	}
}

// impure are the packages through which the outside world comes in; each prefix covers what is below it.
func impure() []string { return []string{"time", "net", "os", "sync", "math/rand", "crypto/rand"} }

// pure lists directories, or single files, and what they may use of impure all the same.
func pure() map[string][]string {
	return map[string][]string{
		"internal/engine/core":          nil,
		"internal/engine/catchup":       nil,
		"internal/machine":              nil,
		"internal/control":              {"time"}, // to parse and print durations
		"internal/control/placement.go": nil,
	}
}

// source is one parsed file.
type source struct {
	path, dir string // relative to the module's root
	text      []byte
	file      *ast.File
	set       *token.FileSet
	test      bool
}

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.set.Position(n.Pos()).Line)
}

func (s source) imports() []string {
	var out []string
	for _, spec := range s.file.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != "." && (strings.HasPrefix(name, ".") || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		out = append(out, source{path: p, dir: path.Dir(p), text: text, file: file, set: set, test: strings.HasSuffix(p, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("found only %d source files", len(out))
	}
	return out
}

func matches(pattern, dir string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == base || strings.HasPrefix(dir, base+"/")
	}
	return dir == pattern
}

func matchesAny(patterns []string, dir string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, dir) })
}

func TestImportsPointOneWay(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue // a test may hold its subject against anything
		}
		i := slices.IndexFunc(arrows(), func(a arrow) bool { return matches(a.from, s.dir) })
		if i < 0 {
			t.Errorf("%s: package %s has no arrow", s.path, s.dir)
			continue
		}
		for _, imp := range s.imports() {
			if to, ok := strings.CutPrefix(imp, module+"/"); ok && !matchesAny(arrows()[i].to, to) {
				t.Errorf("%s: %s must not import %s", s.path, s.dir, to)
			}
			for _, dep := range ownedDependencies() {
				if strings.HasPrefix(imp, dep.from) && !matchesAny(dep.to, s.dir) {
					t.Errorf("%s: %s must not import %s", s.path, s.dir, imp)
				}
			}
			if first, _, _ := strings.Cut(imp, "/"); s.dir == "api" && strings.Contains(first, ".") {
				t.Errorf("%s: api imports only the standard library, not %s", s.path, imp)
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, s := range sources(t) {
		for place, except := range pure() {
			if s.test || place != s.dir && place != s.path {
				continue
			}
			for _, imp := range s.imports() {
				for _, bad := range impure() {
					if (imp == bad || strings.HasPrefix(imp, bad+"/")) && !slices.Contains(except, imp) {
						t.Errorf("%s: %s is pure and must not import %s", s.path, place, imp)
					}
				}
			}
		}
	}
}

// TestPackageDocs: what a package is stands in front of one of its files; of a test file only if it has no others.
func TestPackageDocs(t *testing.T) {
	documented, inTests := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		m := documented
		if s.test {
			m = inTests
		}
		m[s.dir] = m[s.dir] || s.file.Doc != nil
	}
	for dir, doc := range inTests {
		if _, hasOthers := documented[dir]; !hasOthers {
			documented[dir] = doc
		}
	}
	for dir, doc := range documented {
		if !doc {
			t.Errorf("package %s has no doc comment", dir)
		}
	}
}

func TestFileSizes(t *testing.T) {
	for _, s := range sources(t) {
		if lines := bytes.Count(s.text, []byte("\n")); lines > maxLines {
			t.Errorf("%s has %d lines, more than %d", s.path, lines, maxLines)
		}
	}
}

// TestHabits: no init, no sleeping in tests, no leftovers.
func TestHabits(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: no init functions; wire things up where they are built", s.at(n))
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && s.test && x.Name == "time" && n.Sel.Name == "Sleep" {
					t.Errorf("%s: tests wait for what they need, they do not sleep", s.at(n))
				}
			}
			return true
		})
		for _, group := range s.file.Comments {
			for _, mark := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
				if strings.Contains(group.Text(), mark) {
					t.Errorf("%s: %s left behind", s.at(group), mark)
				}
			}
		}
	}
}

func TestFormatted(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(want, s.text) {
			t.Errorf("%s is not formatted: make fmt", s.path)
		}
	}
}

// TestStaticcheck runs vet and staticcheck over the whole module.
func TestStaticcheck(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while; skipped by -short")
	}
	for _, args := range [][]string{{"vet", "./..."}, {"tool", "staticcheck", "./..."}} {
		if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
