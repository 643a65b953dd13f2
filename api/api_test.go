package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// declaredCodes reads the Code constants out of the source, so that one that is missing in the table is noticed.
func declaredCodes(t *testing.T) []Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []Code
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != "Code" {
			return true
		}
		for _, v := range spec.Values {
			s, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, Code(s))
		}
		return true
	})
	if len(codes) < 8 {
		t.Fatalf("found only %d codes in the source", len(codes))
	}
	return codes
}

func TestCodesHaveNoBlank(t *testing.T) {
	rows := map[Code]CodeInfo{}
	exits := map[int]Code{}
	for _, row := range Codes() {
		if _, twice := rows[row.Code]; twice {
			t.Errorf("%s: two rows", row.Code)
		}
		if other, twice := exits[row.Exit]; twice {
			t.Errorf("%s and %s share exit code %d", row.Code, other, row.Exit)
		}
		rows[row.Code], exits[row.Exit] = row, row.Code
		if row.Code == "" || row.Exit < 1 || row.Exit > 255 || row.Status < 400 || row.Status > 599 || row.EN == "" || row.ZH == "" {
			t.Errorf("blank or out of range: %+v", row)
		}
		if row.ZH == row.EN {
			t.Errorf("%s: not translated", row.Code)
		}
	}
	for _, c := range declaredCodes(t) {
		if _, ok := rows[c]; !ok {
			t.Errorf("%s is not in the table", c)
		}
	}
	if got := Code("from-the-future").Info().Exit; got != 1 {
		t.Errorf("unknown code exits with %d", got)
	}
}

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  Error
		want string
	}{
		{Error{Code: CodeDenied}, "denied"},
		{Error{Code: CodeDenied, Why: "no"}, "no"},
		{Error{Code: CodeDenied, Op: "join", Why: "token expired"}, "join: token expired"},
		{Error{Code: CodeNotFound, Op: "dir bind", Subject: "web", Why: "no such group", Hint: "x"}, "dir bind web: no such group"},
		{Error{Code: CodeNotFound, Subject: "web", Why: "no such group"}, "web: no such group"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	err := fmt.Errorf("outer: %w", &Error{Code: CodeDenied, Op: "join", Why: "expired"})
	if !errors.Is(err, &Error{Code: CodeDenied}) || errors.Is(err, &Error{Code: CodeFailed}) {
		t.Error("errors.Is by code does not hold")
	}
}

func TestRoutes(t *testing.T) {
	mux := http.NewServeMux() // panics on ambiguous patterns
	for _, r := range Routes() {
		mux.HandleFunc(r.Pattern(), func(http.ResponseWriter, *http.Request) {})
		if r.Request == nil || r.Response == nil {
			t.Errorf("%s: a type is missing", r.Pattern())
		}
	}
	if got, want := RouteDirUnbind().URL("a/b c", "n%1"), "/v1/dirs/a%2Fb%20c/nodes/n%251"; got != want {
		t.Errorf("URL: %s, want %s", got, want)
	}
}

// TestJSONNames: every exported field of every type on the wire has a snake_case name.
func TestJSONNames(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		switch ty.Kind() {
		case reflect.Slice, reflect.Map, reflect.Pointer:
			walk(ty.Elem())
		case reflect.Struct:
			if seen[ty] || ty.PkgPath() != reflect.TypeFor[Error]().PkgPath() || ty == reflect.TypeFor[DirList]() {
				return
			}
			seen[ty] = true
			for f := range ty.Fields() {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" || name != strings.ToLower(name) {
					t.Errorf("%s.%s: json name %q", ty, f.Name, name)
				}
				walk(f.Type)
			}
		}
	}
	for _, r := range Routes() {
		walk(reflect.TypeOf(r.Request))
		walk(reflect.TypeOf(r.Response))
	}
	walk(reflect.TypeFor[StreamLine]())
	walk(reflect.TypeFor[Ready]())
}

func TestEscapePath(t *testing.T) {
	for raw, want := range map[string]string{
		"":                "",
		"a/b c":           "a/b c",
		"学/é":             "学/é",
		`a\b`:             `a\\b`,
		"a\nb":            `a\x0ab`,
		"\xff\xfe":        `\xff\xfe`,
		"tail\xe5\xad":    `tail\xe5\xad`,
		"\u202egnp.exe":   `\xe2\x80\xaegnp.exe`,
		"esc\x1b[31m":     `esc\x1b[31m`,
		"\ufffd":          "\ufffd",
		"del\x7f":         `del\x7f`,
		"soft\u00adbreak": `soft\xc2\xadbreak`,
	} {
		if got := EscapePath(raw); got != want {
			t.Errorf("EscapePath(%q) = %q, want %q", raw, got, want)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\xf`, `\xgg`, `\n`, `a\x+1`} {
		if got, err := UnescapePath(bad); err == nil {
			t.Errorf("UnescapePath(%q) = %q, want an error", bad, got)
		}
	}
}

func FuzzEscapePath(f *testing.F) {
	for _, s := range []string{"a", `\`, "\xff\\x", "日本\x00", "\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		esc := EscapePath(raw)
		if !utf8.ValidString(esc) {
			t.Fatalf("%q: %q is not UTF-8", raw, esc)
		}
		js, err := json.Marshal(esc)
		if err != nil {
			t.Fatal(err)
		}
		var back string
		if err := json.Unmarshal(js, &back); err != nil {
			t.Fatal(err)
		}
		got, err := UnescapePath(back)
		if err != nil || got != raw {
			t.Fatalf("%q came back as %q, %v", raw, got, err)
		}
	})
}

func FuzzUnescapePath(f *testing.F) {
	for _, s := range []string{`\\`, `\x00`, `\xzz`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		raw, err := UnescapePath(s)
		if err != nil {
			return
		}
		again, err := UnescapePath(EscapePath(raw))
		if err != nil || again != raw {
			t.Fatalf("%q → %q → %q, %v", s, raw, again, err)
		}
	})
}
