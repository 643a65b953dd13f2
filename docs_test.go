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
	"unicode"
)

// page is one file of the documentation.
type page struct {
	headings []int // their levels
	rows     []int // cells of each row of its tables
	fences   int   // lines that begin or end a block of code
	fixtures []string
	links    []string // to files, without what is behind #
	spans    []string // what stands between backquotes and is the same in every language, sorted
}

var (
	link    = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	span    = regexp.MustCompile("`([^`]+)`")
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
	p.spans = spans(string(b))
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

// spans are what stands between backquotes outside of blocks of code, but for what holds words of a language.
func spans(text string) (list []string) {
	outside := regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(text, "")
	for _, m := range span.FindAllStringSubmatch(strings.ReplaceAll(outside, "\n", " "), -1) {
		if !slices.ContainsFunc([]rune(m[1]), func(r rune) bool { return unicode.Is(unicode.Han, r) }) {
			list = append(list, strings.Join(strings.Fields(m[1]), " "))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// without are the elements of a that b does not have.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
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
		if only, other := without(a.spans, b.spans), without(b.spans, a.spans); len(only)+len(other) > 0 {
			t.Errorf("%s: between backquotes only %s has %q, only %s has %q", name, en, only, zh, other)
		}
		if !slices.Equal(a.fixtures, b.fixtures) {
			t.Errorf("%s: fixtures %v and %v", name, a.fixtures, b.fixtures)
		}
	}
}

// slug is how a heading is named in links.
func slug(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(strings.TrimLeft(heading, "#"))) {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
}

// sections are the names of a page's headings.
func sections(t *testing.T, file string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ .*$`).FindAllString(fileText(t, file), -1) {
		all[slug(m)] = true
	}
	return all
}

// TestDocsLeadToSections: what is behind # in a link is a heading there.
func TestDocsLeadToSections(t *testing.T) {
	files := []string{"README.md", "README.zh.md"}
	for _, name := range pages(t, "docs") {
		files = append(files, filepath.Join("docs", name))
	}
	seen := 0
	for _, file := range files {
		for _, m := range regexp.MustCompile(`\]\(([^)#:]*)#([^)]+)\)`).FindAllStringSubmatch(fileText(t, file), -1) {
			to := file
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(file), m[1])
			}
			if seen++; !sections(t, to)[m[2]] {
				t.Errorf("%s: %s has no section %s", file, to, m[2])
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d links were found", seen)
	}
}

// TestReadmesInBothLanguages: the same sections, links (each to its language's pages) and text between backquotes.
func TestReadmesInBothLanguages(t *testing.T) {
	a, b := readPage(t, "README.md"), readPage(t, "README.zh.md")
	for i := range b.links {
		b.links[i] = strings.ReplaceAll(b.links[i], "docs/zh/", "docs/en/")
	}
	if !slices.Equal(a.headings, b.headings) || a.fences != b.fences {
		t.Errorf("headings %v and %v, %d and %d lines around code", a.headings, b.headings, a.fences, b.fences)
	}
	if only, other := without(a.links, b.links), without(b.links, a.links); !slices.Equal(only, []string{"README.zh.md"}) || !slices.Equal(other, []string{"README.md"}) {
		t.Errorf("links of one only: %v and %v", only, other)
	}
	if only, other := without(a.spans, b.spans), without(b.spans, a.spans); len(only)+len(other) > 0 {
		t.Errorf("between backquotes of one only: %q and %q", only, other)
	}
	if x, y := strings.Count(fileText(t, "README.md"), "\n- "), strings.Count(fileText(t, "README.zh.md"), "\n- "); x != y {
		t.Errorf("%d and %d points in lists", x, y)
	}
}

func fileText(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
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

// literals are the values of a pattern's first group in the sources of a package, without its tests.
func literals(t *testing.T, dir, pattern string) (list []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(fileText(t, f), -1) {
			list = append(list, m[1])
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// firstCells are what stands between backquotes in the first cells of the tables of a part of a page, from a line that
// begins with head to the next heading.
func firstCells(t *testing.T, file, head string) (list []string) {
	t.Helper()
	in := false
	for line := range strings.Lines(fileText(t, file)) {
		if strings.HasPrefix(line, "#") {
			in = false
		}
		in = in || strings.HasPrefix(line, head)
		if cells := strings.Split(line, "|"); in && len(cells) > 2 {
			for _, m := range span.FindAllStringSubmatch(cells[1], -1) {
				list = append(list, m[1])
			}
		}
	}
	slices.Sort(list)
	return list
}

// TestDocsExplainEveryWarning: what `status` may warn of is what the operator's page explains, no more and no less.
func TestDocsExplainEveryWarning(t *testing.T) {
	names := literals(t, filepath.Join("internal", "server"), `api\.Warning\{+\s*Name:\s*"([a-z_]+)"`)
	if first := literals(t, filepath.Join("internal", "server"), `api\.Warning\{+\s*([A-Za-z]+)`); len(names) < 15 || !slices.Equal(first, []string{"Name"}) {
		t.Fatalf("the sources are read wrongly: warnings %v begin with %v", names, first)
	}
	for file, head := range map[string]string{"docs/en/operations.md": "| warning |", "docs/zh/operations.md": "| 警告 |"} {
		told := firstCells(t, file, head)
		if silent, made := without(names, told), without(told, names); len(silent)+len(made) > 0 {
			t.Errorf("%s does not explain %v, and explains %v, which there are none of", file, silent, made)
		}
	}
}

// TestTroubleshootingQuotesTheProgram: the texts that the page explains are the program's, but for what stands for something
// else (… and N).
func TestTroubleshootingQuotesTheProgram(t *testing.T) {
	var sources strings.Builder
	for _, dir := range []string{"internal", "client"} {
		err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, "_test.go") {
				sources.WriteString(fileText(t, file))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	foreign := []string{"permission denied"} // the kernel's
	for file, heads := range map[string][]string{"docs/en/troubleshooting.md": {"| text |", "| seen | means |"}, "docs/zh/troubleshooting.md": {"| 文字 |", "| 现象 | 含义 |"}} {
		for _, head := range heads {
			cells := firstCells(t, file, head)
			if len(cells) < 4 {
				t.Errorf("%s: only %q below %s", file, cells, head)
			}
			for _, cell := range cells {
				for _, part := range regexp.MustCompile(`…|\bN\b`).Split(cell, -1) {
					if part = strings.Trim(part, " :"); !slices.Contains(foreign, part) && !strings.Contains(sources.String(), part) {
						t.Errorf("%s: the program does not say %q", file, part)
					}
				}
			}
		}
	}
}

// TestUnitFileIsAsDocumented: what the pages say of the unit file is in it.
func TestUnitFileIsAsDocumented(t *testing.T) {
	unit := fileText(t, "deploy/systemd/lockstep.service")
	for _, c := range []struct{ page, says, unit string }{
		{"docs/en/troubleshooting.md", "except after 2, 5 and 6", "RestartPreventExitStatus=2 5 6\n"},
		{"docs/zh/troubleshooting.md", "除 2、5、6 之外", "RestartPreventExitStatus=2 5 6\n"},
		{"docs/en/sizing.md", "the unit file sets 1,048,576", "LimitNOFILE=1048576\n"},
		{"docs/zh/sizing.md", "单元文件设为 1,048,576", "LimitNOFILE=1048576\n"},
		{"docs/en/operations.md", "as root with six capabilities", "Set=CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_FSETID\n"},
		{"docs/zh/operations.md", "只保留六项 capability", "Set=CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_FSETID\n"},
		{"docs/en/operations.md", "/etc/lockstep/env", "EnvironmentFile=-/etc/lockstep/env\n"},
	} {
		if !strings.Contains(fileText(t, c.page), c.says) || !strings.Contains(unit, c.unit) {
			t.Errorf("%s: %q, or the unit file: %q, is no more", c.page, c.says, c.unit)
		}
	}
}
