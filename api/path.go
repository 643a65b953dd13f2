package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// EscapePath turns a path of arbitrary bytes into printable UTF-8 that UnescapePath turns back: a backslash
// becomes \\, every byte of something that is not printable UTF-8 becomes \xNN. Most paths are unchanged.
func EscapePath(raw string) string {
	if plain(raw) {
		return raw
	}
	var b strings.Builder
	for len(raw) > 0 {
		r, n := utf8.DecodeRuneInString(raw)
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			for i := range n {
				fmt.Fprintf(&b, `\x%02x`, raw[i])
			}
		default:
			b.WriteString(raw[:n])
		}
		raw = raw[n:]
	}
	return b.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '\\' {
			return false
		}
	}
	return true
}

// UnescapePath is the inverse of EscapePath; it refuses what EscapePath cannot have made of any path.
func UnescapePath(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		switch {
		case s[i] != '\\':
			b.WriteByte(s[i])
			i++
		case strings.HasPrefix(s[i:], `\\`):
			b.WriteByte('\\')
			i += 2
		default:
			v, err := hexByte(s[i:])
			if err != nil {
				return "", &Error{Code: CodeUsage, Op: "read path", Subject: s, Why: err.Error(),
					Hint: `write a backslash as \\ and any other byte as \xNN`}
			}
			b.WriteByte(v)
			i += 4
		}
	}
	return b.String(), nil
}

func hexByte(s string) (byte, error) {
	if len(s) < 4 || s[1] != 'x' {
		return 0, fmt.Errorf("backslash not followed by a backslash or xNN")
	}
	v, err := strconv.ParseUint(s[2:4], 16, 8)
	if err != nil {
		return 0, fmt.Errorf("%q is not a byte in hexadecimal", s[:4])
	}
	return byte(v), nil
}
