package manifest

import (
	"bytes"
	"encoding/binary"
	"strings"
)

const (
	tagNode     = 'n'
	tagRoot     = 'r'
	tagDigest   = 'd'
	tagStats    = 's'
	tagPolicy   = 'p'
	tagAuthor   = 'a'
	tagAuthorID = 'b'
	tagConflict = 'c'
)

// appendDir appends dir with its separators as 0x00.
func appendDir(b []byte, dir string) []byte {
	start := len(b)
	b = append(b, dir...)
	for i := start; i < len(b); i++ {
		if b[i] == '/' {
			b[i] = 0
		}
	}
	return b
}

// appendChildren appends the prefix of the keys of dir's direct children.
func appendChildren(b []byte, dir string) []byte {
	return append(appendDir(append(b, tagNode), dir), 0, 0)
}

// appendNodeKey appends path's key.
func appendNodeKey(b []byte, path string) []byte {
	if path == "" {
		return append(b, tagRoot)
	}
	dir, name := split(path)
	return append(appendChildren(b, dir), name...)
}

// subtree returns the key range of everything below dir.
func subtree(dir string) (from, to []byte) {
	from = appendDir([]byte{tagNode}, dir)
	if dir == "" {
		return from, []byte{tagNode + 1}
	}
	to = append(bytes.Clone(from), 1)
	return append(from, 0), to
}

// childRange returns the key range of dir's direct children.
func childRange(dir string) (from, to []byte) {
	from = appendChildren(nil, dir)
	to = bytes.Clone(from)
	to[len(to)-1] = 1
	return from, to
}

// nodePath is the inverse of appendNodeKey for keys under tagNode.
func nodePath(key []byte) (string, bool) {
	if len(key) < 4 || key[0] != tagNode {
		return "", false
	}
	i := bytes.Index(key, []byte{0, 0})
	if i < 0 {
		return "", false
	}
	name := key[i+2:]
	if i == 1 {
		return string(name), true
	}
	return strings.ReplaceAll(string(key[1:i]), "\x00", "/") + "/" + string(name), true
}

func appendDigestKey(b []byte, dir string) []byte {
	return appendDir(append(b, tagDigest), dir)
}

func conflictKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tagConflict}, seq)
}

func authorKey(id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tagAuthor}, id)
}

func authorNameKey(name string) []byte {
	return append([]byte{tagAuthorID}, name...)
}

// AppendKey appends a key that sorts as Walk visits: a directory before what is in it, the children of one
// directory together. Other tables keyed by path may use it to be walked alongside. The root's key is empty.
func AppendKey(b []byte, path string) []byte {
	if path == "" {
		return b
	}
	dir, name := split(path)
	return append(append(appendDir(b, dir), 0, 0), name...)
}

// AppendChildrenKey appends the prefix that AppendKey gives dir's direct children, and no other path.
func AppendChildrenKey(b []byte, dir string) []byte { return append(appendDir(b, dir), 0, 0) }

// KeyPath is the inverse of AppendKey.
func KeyPath(key []byte) (string, bool) {
	if len(key) == 0 {
		return "", true
	}
	return nodePath(append([]byte{tagNode}, key...))
}
