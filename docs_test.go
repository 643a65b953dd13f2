package lockstep_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is one file of the documentation.
type page struct {
	headings []int // their levels
	rows     []int // cells of each row of its tables
	fences   int   // lines that begin or end a block of code
	fixtures []string
	links    []string // to files, without what is behind #
}

var (
	link    = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	example = regexp.MustCompile("`(internal/[a-z/]+/testdata/[a-z0-9.-]+)`")
)

func readPage(t *testing.T, file string) (p page) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	code := false
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.HasPrefix(line, "```"):
			code = !code
			p.fences++
		case code:
		case strings.HasPrefix(line, "#"):
			p.headings = append(p.headings, len(line)-len(strings.TrimLeft(line, "#")))
		case strings.HasPrefix(line, "|"):
			p.rows = append(p.rows, strings.Count(line, "|")-strings.Count(line, `\|`))
		}
	}
	for _, m := range example.FindAllStringSubmatch(string(b), -1) {
		p.fixtures = append(p.fixtures, m[1])
	}
	for _, m := range link.FindAllStringSubmatch(string(b), -1) {
		if !strings.Contains(m[1], "://") {
			p.links = append(p.links, m[1])
		}
	}
	return p
}

// pages are the files below a directory, relative to it.
func pages(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && path.Ext(p) == ".md" {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestDocsInBothLanguages: each page is there twice, with the same sections, tables, blocks and fixtures.
func TestDocsInBothLanguages(t *testing.T) {
	en, zh := filepath.Join("docs", "en"), filepath.Join("docs", "zh")
	list := pages(t, en)
	if other := pages(t, zh); !slices.Equal(list, other) {
		t.Fatalf("%s has %v, %s has %v", en, list, zh, other)
	}
	for _, name := range list {
		a, b := readPage(t, filepath.Join(en, name)), readPage(t, filepath.Join(zh, name))
		if !slices.Equal(a.headings, b.headings) {
			t.Errorf("%s: headings of levels %v and %v", name, a.headings, b.headings)
		}
		if !slices.Equal(a.rows, b.rows) {
			t.Errorf("%s: %d and %d rows of tables, with %v and %v borders", name, len(a.rows), len(b.rows), a.rows, b.rows)
		}
		if a.fences != b.fences {
			t.Errorf("%s: %d and %d lines around blocks of code", name, a.fences, b.fences)
		}
		if !slices.Equal(a.fixtures, b.fixtures) {
			t.Errorf("%s: fixtures %v and %v", name, a.fixtures, b.fixtures)
		}
	}
}

// TestDocsLeadSomewhere: links and fixtures exist, and every format has a fixture.
func TestDocsLeadSomewhere(t *testing.T) {
	for _, name := range pages(t, "docs") {
		file := filepath.Join("docs", name)
		p := readPage(t, file)
		for _, to := range p.links {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), to)); err != nil {
				t.Errorf("%s leads nowhere: %v", file, err)
			}
		}
		for _, to := range p.fixtures {
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		if path.Base(path.Dir(name)) == "formats" && len(p.fixtures) == 0 {
			t.Errorf("%s names no fixture", file)
		}
	}
}
