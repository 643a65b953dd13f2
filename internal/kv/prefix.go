package kv

import "bytes"

// Prefixed is the part of s under prefix, which its keys leave out. Close does nothing; Sync syncs all of s.
func Prefixed(s Store, prefix []byte) Store {
	if p, ok := s.(*prefixStore); ok {
		return Prefixed(p.s, p.full(prefix))
	}
	return &prefixStore{prefixReader{s, newPrefix(prefix)}, s}
}

// PrefixedReader is the part of r under prefix.
func PrefixedReader(r Reader, prefix []byte) Reader { return prefixReader{r, newPrefix(prefix)} }

// PrefixedTx is the part of tx under prefix: one batch can so carry the writes of several owners. Like a
// Tx it is for one goroutine.
func PrefixedTx(tx Tx, prefix []byte) Tx {
	t := newPrefixTx(tx, newPrefix(prefix))
	return &t
}

// PrefixEnd is the smallest key above all keys that start with prefix; nil if there is none.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

type prefix struct {
	start, end []byte
}

func newPrefix(p []byte) prefix { return prefix{bytes.Clone(p), PrefixEnd(p)} }

func (p prefix) full(key []byte) []byte {
	return append(append(make([]byte, 0, len(p.start)+len(key)), p.start...), key...)
}

func (p prefix) bound(to []byte) []byte {
	if to == nil {
		return p.end
	}
	return p.full(to)
}

type prefixReader struct {
	r Reader
	prefix
}

func (p prefixReader) Get(key []byte) ([]byte, bool, error) { return p.r.Get(p.full(key)) }

func (p prefixReader) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	size := 0
	for _, key := range keys {
		size += len(p.start) + len(key)
	}
	buf := make([]byte, 0, size)
	full := make([][]byte, len(keys))
	for i, key := range keys {
		at := len(buf)
		buf = append(append(buf, p.start...), key...)
		full[i] = buf[at:len(buf):len(buf)]
	}
	return p.r.Lookup(full, visit)
}

func (p prefixReader) Scan(from, to []byte, visit func(key, value []byte) error) error {
	return p.r.Scan(p.full(from), p.bound(to), func(k, v []byte) error { return visit(k[len(p.start):], v) })
}

type prefixStore struct {
	prefixReader
	s Store
}

func (p *prefixStore) Batch() Batch {
	b := p.s.Batch()
	return &prefixBatch{newPrefixTx(b, p.prefix), b}
}

func (p *prefixStore) View() View {
	v := p.s.View()
	return &prefixView{prefixReader{v, p.prefix}, v}
}

func (p *prefixStore) Sync() error { return p.s.Sync() }
func (p *prefixStore) Through() Store {
	return &prefixStore{prefixReader{p.s.Through(), p.prefix}, p.s.Through()}
}
func (p *prefixStore) Size(from, to []byte) (uint64, error) {
	return p.s.Size(p.full(from), p.bound(to))
}
func (p *prefixStore) Close() error { return nil }

type prefixView struct {
	prefixReader
	v View
}

func (p *prefixView) Close() error { return p.v.Close() }

// prefixTx builds keys in a buffer of its own: every Tx copies what it keeps.
type prefixTx struct {
	prefixReader
	tx  Tx
	buf []byte // starts with the prefix
}

func newPrefixTx(tx Tx, p prefix) prefixTx { return prefixTx{prefixReader{tx, p}, tx, p.full(nil)} }

func (p *prefixTx) key(key []byte) []byte {
	p.buf = append(p.buf[:len(p.start)], key...)
	return p.buf
}

func (p *prefixTx) Get(key []byte) ([]byte, bool, error) { return p.tx.Get(p.key(key)) }
func (p *prefixTx) Set(key, value []byte) error          { return p.tx.Set(p.key(key), value) }
func (p *prefixTx) Delete(key []byte) error              { return p.tx.Delete(p.key(key)) }

func (p *prefixTx) DeleteRange(from, to []byte) error {
	return p.tx.DeleteRange(p.full(from), p.bound(to))
}

type prefixBatch struct {
	prefixTx
	b Batch
}

func (p *prefixBatch) Commit() error { return p.b.Commit() }
func (p *prefixBatch) Discard()      { p.b.Discard() }
