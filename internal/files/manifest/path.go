package manifest

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// MaxPath is the longest path in bytes that a system call takes, MaxName the longest single name.
	MaxPath = 4095
	MaxName = 255
	// Reserved is the name in the root directory that belongs to Lockstep itself.
	Reserved = ".lockstep"
)

// ValidPath reports whether p may name an entry: relative, clean, no NUL, within the limits, and not under
// Reserved. The root directory ("") is valid.
func ValidPath(p string) bool {
	if len(p) > MaxPath {
		return false
	}
	if p == "" {
		return true
	}
	rest, first := p, true
	for {
		name, tail, more := strings.Cut(rest, "/")
		if !validName(name) || first && name == Reserved {
			return false
		}
		if !more {
			return true
		}
		rest, first = tail, false
	}
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= MaxName && strings.IndexByte(name, 0) < 0
}

// Parent returns the directory that holds p; ok is false for the root.
func Parent(p string) (dir string, ok bool) {
	if p == "" {
		return "", false
	}
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], true
	}
	return "", true
}

// Join is the path of name in dir.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// conflictName is a name for the copy of path that author wrote: the suffix goes after the whole name, with
// n unless it is 0; the name is shortened, at a rune boundary where there is one, to fit MaxName. If the path
// gets too long nevertheless, the copy goes to the root directory.
func conflictName(path, author string, at int64, n uint64) string {
	dir, name := split(path)
	author = strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '_'
		}
		return r
	}, author)
	suffix := ".conflict-" + cut(author, 64) + "-" + time.Unix(0, at).UTC().Format("20060102-150405")
	if n > 0 {
		suffix += "-" + strconv.FormatUint(n, 10)
	}
	name = cut(name, MaxName-len(suffix)) + suffix
	if len(dir)+1+len(name) > MaxPath {
		return name
	}
	return Join(dir, name)
}

// cut shortens s to at most n bytes without splitting a rune (if s is UTF-8).
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax && i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n]
}
