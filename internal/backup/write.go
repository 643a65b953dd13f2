package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// Writer writes a backup, or, as a Fragment, what one member has of a group.
type Writer struct {
	w        io.Writer
	offset   uint64
	whole    *blake3.Hasher
	contents *blake3.Hasher // hashes of complete contents
	seen     Set            // complete contents
	index    Index
	open     bool // a part was begun and not ended
	buf      []byte
}

// NewWriter begins a backup. seen, empty at first, gets the contents that are written; nil: memory serves.
func NewWriter(w io.Writer, h Header, seen Set) (*Writer, error) {
	out := newWriter(w, seen)
	h.Level = Level
	if err := out.raw([]byte(magic)); err != nil {
		return nil, err
	}
	return out, out.json(kindHeader, h)
}

// NewFragment begins what Forward takes. seen is as for NewWriter.
func NewFragment(w io.Writer, seen Set) *Writer { return newWriter(w, seen) }

func newWriter(w io.Writer, seen Set) *Writer {
	return &Writer{w: w, whole: blake3.New(), contents: blake3.New(), seen: setOr(seen), buf: make([]byte, maxData)}
}

func (o *Writer) raw(b []byte) error {
	o.whole.Write(b)
	o.offset += uint64(len(b))
	if _, err := o.w.Write(b); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

func (o *Writer) record(k kind, body []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{byte(k)}, uint32(len(body)))
	if err := o.raw(head); err != nil {
		return err
	}
	return o.raw(body)
}

func (o *Writer) json(k kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if len(b) > maxDescription {
		return fmt.Errorf("write backup: a description of %d bytes is longer than %d", len(b), maxDescription)
	}
	return o.record(k, b)
}

// Part writes a part; body writes its bytes.
func (o *Writer) Part(p Part, body func(io.Writer) error) error {
	p.Length, p.Digest, p.Offset = 0, Hash{}, o.offset
	if err := o.json(kindPart, p); err != nil {
		return err
	}
	o.open = true
	part := &partWriter{o: o, hash: blake3.New()}
	if err := body(part); err != nil {
		return err
	}
	p.Length = part.length
	part.hash.Sum(p.Digest[:0])
	o.index.Parts = append(o.index.Parts, p)
	o.open = false
	return o.record(kindEnd, p.Digest[:])
}

// Open says whether a part was begun and could not be ended: then the file can only be aborted. After any other error
// of a source the file can go on with another one.
func (o *Writer) Open() bool { return o.open }

type partWriter struct {
	o      *Writer
	hash   *blake3.Hasher
	length uint64
}

func (p *partWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), maxData)
		p.hash.Write(b[:k])
		if err := p.o.record(kindData, b[:k]); err != nil {
			return n, err
		}
		p.length += uint64(k)
		n, b = n+k, b[k:]
	}
	return n, nil
}

// Has says whether the content is in the file.
func (o *Writer) Has(h Hash) (bool, error) { return o.seen.Has(h) }

// Content writes a content if r yields it: complete is false if r fails, or yields something else. The file then
// says so and the content may be written again. An error means that nothing more can be written.
func (o *Writer) Content(h Hash, size uint64, r io.Reader) (complete bool, err error) {
	if has, err := o.seen.Has(h); has || err != nil {
		return has, err
	}
	if err := o.record(kindContent, binary.BigEndian.AppendUint64(h[:], size)); err != nil {
		return false, err
	}
	hash := blake3.New()
	left := size
	for left > 0 {
		n, err := io.ReadFull(r, o.buf[:min(left, maxData)])
		hash.Write(o.buf[:n])
		left -= uint64(n)
		if n > 0 {
			if err := o.record(kindData, o.buf[:n]); err != nil {
				return false, err
			}
		}
		if err != nil {
			break
		}
	}
	var sum Hash
	hash.Sum(sum[:0])
	complete = left == 0 && sum == h
	return complete, o.verdict(h, size, complete)
}

func (o *Writer) verdict(h Hash, size uint64, complete bool) error {
	if !complete {
		return o.record(kindVerdict, []byte{0})
	}
	if err := o.seen.Add(h); err != nil {
		return err
	}
	o.contents.Write(h[:])
	o.index.Contents++
	o.index.ContentBytes += size
	return o.record(kindVerdict, []byte{1})
}

// EndGroup ends a fragment.
func (o *Writer) EndGroup() error { return o.record(kindGroup, nil) }

// Abort says why the backup, or fragment, ends here.
func (o *Writer) Abort(why error) error { return o.json(kindAbort, Aborted{Why: why.Error()}) }

// Finish writes index and trailer.
func (o *Writer) Finish() (Index, error) {
	o.contents.Sum(o.index.ContentDigest[:0])
	if err := o.json(kindIndex, o.index); err != nil {
		return o.index, err
	}
	return o.index, o.record(kindTrailer, o.whole.Sum(nil))
}

// Forward copies a member's fragment into the file; contents that the file has already are left out.
func (o *Writer) Forward(r io.Reader) error {
	return readRecords(r, forgetful{}, visitor{ // what comes twice is left out below
		part: func(p Part, body io.Reader) error {
			return o.Part(p, func(w io.Writer) error {
				_, err := io.CopyBuffer(struct{ io.Writer }{w}, body, make([]byte, maxData))
				return err
			})
		},
		content: func(h Hash, size uint64, body io.Reader) error {
			has, err := o.seen.Has(h)
			if err != nil {
				return err
			}
			if has {
				_, err := io.Copy(io.Discard, body)
				return noMatter(err)
			}
			_, err = o.Content(h, size, body)
			return err
		},
	})
}

// noMatter drops the news that a content was given up.
func noMatter(err error) error {
	if errors.Is(err, ErrGivenUp) {
		return nil
	}
	return err
}

// equal compares parts as they were described with how they stand in the index.
func equal(a, b Part) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
