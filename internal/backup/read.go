package backup

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// ErrGivenUp is what the body of a content ends with, in place of io.EOF, if its writer gave it up.
var ErrGivenUp = errors.New("the content was given up while it was written")

// Handler is shown what a backup holds, in the file's order. A nil field: not of interest. Bodies may be read in
// part; what they yield is verified once they returned io.EOF. Nothing may be put in force before Read returned
// without an error.
type Handler struct {
	Header func(Header) error
	// Part gets a part whose Length and Digest are not known yet.
	Part func(p Part, body io.Reader) error
	// Content gets a content. If body ends with ErrGivenUp, what it yielded is to be forgotten; that is no error.
	Content func(h Hash, size uint64, body io.Reader) error
	// Progress gets the bytes read so far.
	Progress func(bytes uint64)
	// Seen, empty at first, gets each content once it proved to be complete, and is asked whether one comes twice.
	// nil: memory serves.
	Seen Set
}

// Read reads a backup to its end and verifies all of it.
func Read(r io.Reader, h Handler) (Index, error) {
	rd := &reader{in: bufio.NewReaderSize(r, 256<<10), whole: blake3.New(), contents: blake3.New(), progress: h.Progress, seen: setOr(h.Seen)}
	head := make([]byte, len(magic))
	if err := rd.fill(head); err != nil || string(head) != magic {
		if err != nil && !errors.Is(err, ErrTruncated) {
			return Index{}, err
		}
		return Index{}, ErrNotBackup
	}
	if err := rd.header(h.Header); err != nil {
		return Index{}, err
	}
	err := rd.records(visitor{part: h.Part, content: h.Content})
	return rd.index, err
}

// ReadFragment reads what a fragment holds, up to its end and no byte further.
func ReadFragment(r io.Reader, h Handler) error {
	return readRecords(r, h.Seen, visitor{part: h.Part, content: h.Content})
}

// visitor is shown parts and contents.
type visitor struct {
	part    func(p Part, body io.Reader) error
	content func(h Hash, size uint64, body io.Reader) error
}

func readRecords(r io.Reader, seen Set, v visitor) error {
	rd := &reader{in: r, whole: blake3.New(), contents: blake3.New(), seen: setOr(seen), fragment: true}
	return rd.records(v)
}

// reader reads records. index is what was seen, until the file's own proved to be the same.
type reader struct {
	in       io.Reader
	offset   uint64
	whole    *blake3.Hasher
	contents *blake3.Hasher
	seen     Set
	index    Index
	progress func(uint64)
	fragment bool
}

func (r *reader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrDamaged, r.offset, fmt.Sprintf(format, args...))
}

func (r *reader) fill(b []byte) error {
	n, err := io.ReadFull(r.in, b)
	r.offset += uint64(n)
	r.whole.Write(b[:n])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends at byte %d", ErrTruncated, r.offset)
	case err != nil:
		return fmt.Errorf("read backup at byte %d: %w", r.offset, err)
	}
	if r.progress != nil {
		r.progress(r.offset)
	}
	return nil
}

func (r *reader) head() (kind, int, error) {
	var b [recordHead]byte
	if err := r.fill(b[:]); err != nil {
		return 0, 0, err
	}
	k, n := kind(b[0]), int(binary.BigEndian.Uint32(b[1:]))
	if limit, known := k.limit(); !known || n > limit {
		return 0, 0, r.damaged("a record of kind %d with %d bytes", k, n)
	}
	return k, n, nil
}

// limit is how long a record's body may be.
func (k kind) limit() (bytes int, known bool) {
	switch k {
	case kindData:
		return maxData, true
	case kindHeader, kindPart, kindIndex, kindAbort:
		return maxDescription, true
	case kindContent:
		return len(Hash{}) + 8, true
	case kindEnd, kindTrailer:
		return len(Hash{}), true
	case kindVerdict:
		return 1, true
	case kindGroup:
		return 0, true
	}
	return 0, false
}

// body reads a small body, growing only with what arrives.
func (r *reader) body(n int) ([]byte, error) {
	var b []byte
	for len(b) < n {
		at, step := len(b), min(n-len(b), 64<<10)
		b = append(b, make([]byte, step)...)
		if err := r.fill(b[at:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (r *reader) json(n int, v any) error {
	b, err := r.body(n)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return r.damaged("%v", err)
	}
	return nil
}

func (r *reader) header(visit func(Header) error) error {
	k, n, err := r.head()
	if err != nil {
		return err
	}
	if k != kindHeader {
		return r.damaged("no header")
	}
	var h Header
	if err := r.json(n, &h); err != nil {
		return err
	}
	if h.Level > Level {
		return fmt.Errorf("%w: level %d, this program reads up to %d", ErrNewer, h.Level, Level)
	}
	if h.Level < 1 {
		return r.damaged("level %d", h.Level)
	}
	if visit == nil {
		return nil
	}
	return visit(h)
}

// records reads up to the trailer, or a fragment's end.
func (r *reader) records(v visitor) error {
	for {
		start := r.offset
		k, n, err := r.head()
		if err != nil {
			return err
		}
		switch k {
		case kindPart:
			err = r.part(start, n, v.part)
		case kindContent:
			err = r.content(n, v.content)
		case kindAbort:
			var a Aborted
			if err = r.json(n, &a); err == nil {
				err = fmt.Errorf("%w: %s", ErrAborted, a.Why)
			}
		case kindGroup:
			if r.fragment {
				return nil
			}
			err = r.damaged("the end of a fragment")
		case kindIndex:
			if err = r.checkIndex(n); err == nil {
				return r.trailer()
			}
		default:
			err = r.damaged("a record of kind %q out of place", k)
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) part(start uint64, n int, visit func(Part, io.Reader) error) error {
	p := Part{}
	if err := r.json(n, &p); err != nil {
		return err
	}
	p.Offset = start
	if _, twice := r.index.Part(p.Kind, p.Group); twice {
		return r.damaged("part %s of group %q comes twice", p.Kind, p.Group)
	}
	body := &partReader{r: r, hash: blake3.New()}
	if visit != nil {
		if err := visit(p, body); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	p.Length, p.Digest = body.length, body.digest
	r.index.Parts = append(r.index.Parts, p)
	return nil
}

// partReader yields a part's bytes and verifies them at the end.
type partReader struct {
	r      *reader
	hash   *blake3.Hasher
	left   int // of the data record
	length uint64
	digest Hash
	err    error
}

func (p *partReader) Read(b []byte) (int, error) {
	for p.err == nil && p.left == 0 {
		k, n, err := p.r.head()
		switch {
		case err != nil:
			p.err = err
		case k == kindData:
			p.left = n
		case k == kindEnd:
			p.err = p.end(n)
		case k == kindAbort:
			var a Aborted
			if p.err = p.r.json(n, &a); p.err == nil {
				p.err = fmt.Errorf("%w: %s", ErrAborted, a.Why)
			}
		default:
			p.err = p.r.damaged("a record of kind %q inside a part", k)
		}
	}
	if p.err != nil || len(b) == 0 {
		return 0, p.err
	}
	n := min(len(b), p.left)
	if p.err = p.r.fill(b[:n]); p.err != nil {
		return 0, p.err
	}
	p.hash.Write(b[:n])
	p.left -= n
	p.length += uint64(n)
	return n, nil
}

func (p *partReader) end(n int) error {
	want, err := p.r.body(n)
	if err != nil {
		return err
	}
	p.hash.Sum(p.digest[:0])
	if !bytes.Equal(want, p.digest[:]) {
		return p.r.damaged("a part does not match its digest")
	}
	return io.EOF
}

func (r *reader) content(n int, visit func(Hash, uint64, io.Reader) error) error {
	head, err := r.body(n)
	if err != nil {
		return err
	}
	if len(head) != len(Hash{})+8 {
		return r.damaged("the head of a content has %d bytes", len(head))
	}
	body := &contentReader{r: r, hash: blake3.New(), want: Hash(head), size: binary.BigEndian.Uint64(head[len(Hash{}):])}
	body.left = body.size
	if twice, err := r.seen.Has(body.want); err != nil {
		return err
	} else if twice {
		return r.damaged("content %s comes twice", body.want)
	}
	if visit != nil {
		if err := visit(body.want, body.size, body); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, body); err != nil && !errors.Is(err, ErrGivenUp) {
		return err
	}
	if errors.Is(body.err, ErrGivenUp) {
		return nil
	}
	if err := r.seen.Add(body.want); err != nil {
		return err
	}
	r.contents.Write(body.want[:])
	r.index.Contents++
	r.index.ContentBytes += body.size
	return nil
}

// contentReader yields a content's bytes and verifies them at the end.
type contentReader struct {
	r    *reader
	hash *blake3.Hasher
	want Hash
	size uint64
	left uint64 // of the content
	here int    // of the data record
	err  error
}

func (c *contentReader) Read(b []byte) (int, error) {
	for c.err == nil && c.here == 0 {
		k, n, err := c.r.head()
		switch {
		case err != nil:
			c.err = err
		case k == kindData && uint64(n) <= c.left:
			c.here = n
		case k == kindVerdict:
			c.err = c.verdict(n)
		default:
			c.err = c.r.damaged("a record of kind %q inside a content", k)
		}
	}
	if c.err != nil || len(b) == 0 {
		return 0, c.err
	}
	n := min(len(b), c.here)
	if c.err = c.r.fill(b[:n]); c.err != nil {
		return 0, c.err
	}
	c.hash.Write(b[:n])
	c.here -= n
	c.left -= uint64(n)
	return n, nil
}

func (c *contentReader) verdict(n int) error {
	v, err := c.r.body(n)
	switch {
	case err != nil:
		return err
	case len(v) != 1 || v[0] > 1:
		return c.r.damaged("a verdict of %x", v)
	case v[0] == 0:
		return ErrGivenUp
	}
	var sum Hash
	c.hash.Sum(sum[:0])
	if c.left != 0 || sum != c.want {
		return c.r.damaged("content %s does not match its name", c.want)
	}
	return io.EOF
}

// checkIndex compares the file's own account with what was seen.
func (r *reader) checkIndex(n int) error {
	var x Index
	if err := r.json(n, &x); err != nil {
		return err
	}
	r.contents.Sum(r.index.ContentDigest[:0])
	same := len(x.Parts) == len(r.index.Parts) && x.Contents == r.index.Contents && x.ContentBytes == r.index.ContentBytes &&
		x.ContentDigest == r.index.ContentDigest
	for i := range r.index.Parts {
		same = same && equal(x.Parts[i], r.index.Parts[i])
	}
	if !same {
		return r.damaged("the index does not say what the file holds")
	}
	return nil
}

func (r *reader) trailer() error {
	var sum Hash
	r.whole.Sum(sum[:0])
	k, n, err := r.head()
	if err != nil {
		return err
	}
	if k != kindTrailer {
		return r.damaged("a record of kind %q in place of the trailer", k)
	}
	want, err := r.body(n)
	if err != nil {
		return err
	}
	if !bytes.Equal(want, sum[:]) {
		return r.damaged("the file does not match its digest")
	}
	if n, err := r.in.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return r.damaged("something follows the end")
	}
	return nil
}
