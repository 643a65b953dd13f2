package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstep-sync/lockstep/api"
)

// top is the module's root as seen from here.
const top = "../.."

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// leaves are the commands that do something, with their words after the program's name.
func leaves() map[string]*cobra.Command {
	all := map[string]*cobra.Command{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() {
			all[opName(c)] = c
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	return all
}

// told is what a page says of a command: the lines that name it, and the section that has it as its heading.
func told(page, command string) string {
	var about strings.Builder
	name := regexp.MustCompile("(`|lockstep |, )" + regexp.QuoteMeta(command) + `([^a-z-]|$)`)
	in := false
	for text := range strings.Lines(page) {
		if strings.HasPrefix(text, "## ") {
			in = strings.TrimSpace(text) == "## "+command
		}
		if in || name.MatchString(text) {
			about.WriteString(text)
		}
	}
	return about.String()
}

// TestEveryCommandIsDocumented: with each of its flags, where the page tells of it, in both languages.
func TestEveryCommandIsDocumented(t *testing.T) {
	for _, name := range []string{"docs/en/cli.md", "docs/zh/cli.md"} {
		page := readDoc(t, name)
		for command, c := range leaves() {
			about := told(page, command)
			if about == "" {
				t.Errorf("%s does not tell of lockstep %s", name, command)
			}
			c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && !regexp.MustCompile(`--`+f.Name+`([^a-z-]|$)`).MatchString(about) {
					t.Errorf("%s does not tell of lockstep %s --%s", name, command, f.Name)
				}
			})
		}
	}
}

// line is a command of a page, without the program's name.
type line struct {
	text  string
	typed bool // in a block of code, so that it is pasted as it stands
}

// commandLines are what a page tells to type: lines of its blocks of code, and what stands between backquotes, from the
// program's name on, or in cli.md from the first word of a command.
func commandLines(page string, bare []string) (lines []line) {
	code := false
	for text := range strings.Lines(page) {
		text = strings.TrimSpace(text)
		if strings.HasPrefix(text, "```") {
			code = !code
			continue
		}
		if code {
			if _, typed, ok := strings.Cut(text, "# lockstep "); ok {
				text = "lockstep " + typed
			}
			if rest, ok := strings.CutPrefix(text, "lockstep "); ok {
				typed, _, _ := strings.Cut(rest, " # ") // all before a comment is pasted
				lines = append(lines, line{typed, true})
			}
			continue
		}
		for i, span := range strings.Split(text, "`") {
			if i%2 == 0 {
				continue
			}
			span = strings.ReplaceAll(span, `\|`, "|")
			first, _, _ := strings.Cut(span, " ")
			if rest, ok := strings.CutPrefix(span, "lockstep "); ok {
				lines = append(lines, line{rest, false})
			} else if slices.Contains(bare, first) && first != span {
				lines = append(lines, line{span, false})
			}
		}
	}
	return lines
}

// understood says whether the program would know the command, its flags and as many arguments.
func understood(l line) error {
	root := (&app{}).root()
	var words []string
	for _, w := range strings.Fields(l.text) {
		if w == ">" || w == "|" || w == "&&" || w == "&" {
			break
		}
		words = append(words, strings.Trim(w, "[]()'\""))
	}
	at, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if at == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && rest[0] != "COMMAND" && rest[0] != "help" {
		return fmt.Errorf("no such command")
	}
	if at != root && at.HasSubCommands() && len(rest) > 0 && regexp.MustCompile(`^[a-z]+$`).MatchString(rest[0]) {
		return fmt.Errorf("%s has no %s", at.CommandPath(), rest[0])
	}
	if l.typed && !strings.ContainsAny(l.text, "…|[") {
		if err := pasted(at, rest); err != nil {
			return err
		}
	}
	for _, w := range rest {
		for _, flag := range strings.Split(w, "|") {
			flag, _, _ = strings.Cut(strings.Trim(flag, "[]"), "=")
			if name, ok := strings.CutPrefix(flag, "--"); ok && name != "help" && at.Flags().Lookup(name) == nil && at.InheritedFlags().Lookup(name) == nil {
				return fmt.Errorf("%s has no --%s", at.CommandPath(), name)
			}
		}
	}
	return nil
}

// pasted says whether the command would take so many words.
func pasted(c *cobra.Command, words []string) error {
	if err := c.ParseFlags(words); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}

// TestDocumentedCommandsExist: what any page tells to type is a command with these flags.
func TestDocumentedCommandsExist(t *testing.T) {
	files := []string{"README.md", "README.zh.md"}
	for _, pattern := range []string{"docs/en/*.md", "docs/zh/*.md"} {
		list, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil || len(list) < 5 {
			t.Fatalf("%s: %d pages, %v", pattern, len(list), err)
		}
		for _, f := range list {
			rel, err := filepath.Rel(top, f)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, rel)
		}
	}
	var nouns []string
	for _, c := range (&app{}).root().Commands() {
		nouns = append(nouns, c.Name())
	}
	seen := 0
	for _, name := range files {
		for _, l := range commandLines(readDoc(t, name), nouns) {
			seen++
			if err := understood(l); err != nil {
				t.Errorf("%s: lockstep %s: %v", name, l.text, err)
			}
		}
	}
	if seen < 200 {
		t.Errorf("only %d commands were found: the pages are read wrongly", seen)
	}
	for _, wrong := range []string{"dir wiat web", "frob", "dir wait web --timeuot 3s", "dir wait web [--all|--quorun]", "dir wait web   until it is done"} {
		if understood(line{wrong, true}) == nil {
			t.Errorf("lockstep %s passed", wrong)
		}
	}
}

// TestEverySettingIsDocumented: flag, environment variable and key of each stand in one row.
func TestEverySettingIsDocumented(t *testing.T) {
	for _, name := range []string{"docs/en/cli.md", "docs/zh/cli.md"} {
		page := readDoc(t, name)
		for _, s := range settings() {
			key := strings.ReplaceAll(s.flag(), "-", "_")
			row := fmt.Sprintf("| `--%s` | `LOCKSTEP_%s` | `%s` |", s.flag(), strings.ToUpper(key), key)
			if !strings.Contains(page, row) {
				t.Errorf("%s has no row %s", name, row)
			}
		}
	}
}

// TestEveryCodeIsDocumented: with its exit status.
func TestEveryCodeIsDocumented(t *testing.T) {
	for _, name := range []string{"docs/en/cli.md", "docs/zh/cli.md"} {
		page := readDoc(t, name)
		for _, c := range api.Codes() {
			if row := fmt.Sprintf("| %d | `%s` | ", c.Exit, c.Code); !strings.Contains(page, row) {
				t.Errorf("%s has no row %s", name, row)
			}
		}
	}
}

// TestEveryRouteIsDocumented: with the fields that it takes, in one row.
func TestEveryRouteIsDocumented(t *testing.T) {
	for _, name := range []string{"docs/en/cli.md", "docs/zh/cli.md"} {
		page := readDoc(t, name)
		for _, r := range api.Routes() {
			_, row, ok := strings.Cut(page, "`"+r.Method+" "+r.Path+"`")
			if !ok {
				t.Errorf("%s does not tell of %s %s", name, r.Method, r.Path)
				continue
			}
			row, _, _ = strings.Cut(row, "\n")
			if r.Path == api.RouteRestore().Path { // written by the program alone: it goes with the format of backups
				continue
			}
			for _, field := range jsonFields(r.Request) {
				if !regexp.MustCompile(`\b` + field + `\b`).MatchString(row) {
					t.Errorf("%s: the row of %s %s does not have %s", name, r.Method, r.Path, field)
				}
			}
		}
	}
}

func jsonFields(v any) (names []string) {
	t := reflect.TypeOf(v)
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}
