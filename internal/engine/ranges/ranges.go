// Package ranges makes one key-value state equal to another one over a stream, moving only ranges of keys whose
// contents differ. It knows nothing of what the keys mean, so it serves every machine that has no better way.
//
// That also makes a transfer resumable, without the source remembering anything: a learner that was interrupted
// begins again with what it has, from any source and at any later state, and what is equal by then moves no more.
//
// The learner names ranges, each with the BLAKE3 digest of its records, as many as fit one round; the source answers
// each with "same" or with its records, in chunks of bounded size that carry their digest. Behind the learner's last
// key everything comes as chunks, without waiting. The package starts no goroutine and keeps nothing in memory but
// one round's ranges and one chunk.
//
// Frames: length u32 (big-endian), kind u8, body; numbers in bodies are uvarints.
//
//	learner  H  (length, last key, digest 32 B)…: ranges in order, each from behind the one before
//	learner  R  nothing: there are no more
//	source   S  how many of the next ranges are the same
//	source   C  1 if it is the range's last chunk, else 0; digest 32 B of what follows; (length, key, length, value)…
package ranges

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// ErrMalformed wraps what is wrong with what the other side sent.
var ErrMalformed = errors.New("malformed range exchange")

// Writer takes what Fetch writes.
type Writer interface {
	Set(key, value []byte) error
	DeleteRange(from, to []byte) error // from ≤ key < to; nil to: no upper bound
}

const (
	kindHave  = 'H'
	kindRest  = 'R'
	kindSame  = 'S'
	kindChunk = 'C'

	rangeBytes = 256 << 10 // a range, or a chunk, is ended at about this size
	roundBytes = 48 << 10  // and a frame of ranges
	maxRound   = 2 << 20
	maxChunk   = 72 << 20 // one record may have 64 MiB
)

// span is one range: keys above the one before, up to and including last.
type span struct {
	last   []byte
	digest [32]byte
}

// Serve answers a learner's ranges from view until it has everything.
func Serve(view kv.Reader, rw io.ReadWriter) error {
	s := &server{view: view, f: newFrames(rw)}
	for {
		kind, body, err := s.f.read(maxRound)
		if err != nil {
			return fmt.Errorf("serve ranges: %w", err)
		}
		switch kind {
		case kindHave:
			err = s.round(body)
		case kindRest:
			if err = s.chunks(nil); err == nil {
				return s.f.flush()
			}
		default:
			err = fmt.Errorf("frame %q: %w", kind, ErrMalformed)
		}
		if err == nil {
			err = s.f.flush()
		}
		if err != nil {
			return fmt.Errorf("serve ranges: %w", err)
		}
	}
}

type server struct {
	view kv.Reader
	f    *frames
	from []byte // behind the last range that was dealt with
	same uint64
}

func (s *server) round(body []byte) error {
	for len(body) > 0 {
		var sp span
		var err error
		if sp, body, err = parseSpan(body); err != nil {
			return err
		}
		to := after(sp.last)
		if bytes.Compare(to, s.from) <= 0 {
			return fmt.Errorf("ranges out of order: %w", ErrMalformed)
		}
		digest, err := digestOf(s.view, s.from, to)
		if err != nil {
			return err
		}
		if digest == sp.digest {
			s.same++
			s.from = to
			continue
		}
		if err := s.flushSame(); err != nil {
			return err
		}
		if err := s.chunks(to); err != nil {
			return err
		}
	}
	return s.flushSame()
}

func (s *server) flushSame() error {
	if s.same == 0 {
		return nil
	}
	n := s.same
	s.same = 0
	return s.f.write(kindSame, binary.AppendUvarint(nil, n))
}

// chunks sends the records from s.from to to, nil: the end; the last chunk may be empty.
func (s *server) chunks(to []byte) error {
	buf := make([]byte, chunkHead, rangeBytes+rangeBytes/4)
	err := s.view.Scan(s.from, to, func(k, v []byte) error {
		buf = appendRecord(buf, k, v)
		if len(buf) < rangeBytes {
			return nil
		}
		err := s.chunk(buf, false)
		buf = buf[:chunkHead]
		return err
	})
	if err != nil {
		return err
	}
	s.from = to
	return s.chunk(buf, true)
}

const chunkHead = 1 + 32

func (s *server) chunk(buf []byte, last bool) error {
	buf[0] = 0
	if last {
		buf[0] = 1
	}
	digest := blake3.Sum256(buf[chunkHead:])
	copy(buf[1:chunkHead], digest[:])
	return s.f.write(kindChunk, buf)
}

// Fetch makes local equal to the state that is served at the other end: w is told every write that takes, and may act
// on local at once. On an error what was written so far is a mixture, and a good beginning for another Fetch.
func Fetch(local kv.Reader, rw io.ReadWriter, w Writer) error {
	l := &learner{local: local, f: newFrames(rw), w: w}
	if err := l.run(); err != nil {
		return fmt.Errorf("fetch ranges: %w", err)
	}
	return nil
}

type learner struct {
	local kv.Reader
	f     *frames
	w     Writer
	from  []byte // behind the last range that is equal now
}

func (l *learner) run() error {
	for at := []byte(nil); ; {
		spans, err := l.gather(at)
		if err != nil {
			return err
		}
		if len(spans) == 0 {
			break
		}
		var body []byte
		for _, sp := range spans {
			body = appendSpan(body, sp)
		}
		if err := l.f.send(kindHave, body); err != nil {
			return err
		}
		if err := l.round(spans); err != nil {
			return err
		}
		at = l.from
	}
	if err := l.f.send(kindRest, nil); err != nil {
		return err
	}
	for first, last := true, false; !last; first = false {
		kind, body, err := l.f.read(maxChunk)
		if err != nil {
			return err
		}
		if kind != kindChunk {
			return fmt.Errorf("frame %q: %w", kind, ErrMalformed)
		}
		if last, err = l.take(body, nil, first); err != nil {
			return err
		}
	}
	return nil
}

// gather digests what is here from a key on, one round's worth.
func (l *learner) gather(from []byte) (spans []span, err error) {
	h := blake3.New()
	var size, total int
	var last, buf []byte
	cut := func() {
		var sp span
		sp.last = bytes.Clone(last)
		h.Sum(sp.digest[:0])
		h.Reset()
		spans, size, total = append(spans, sp), 0, total+len(last)+40
	}
	err = l.local.Scan(from, nil, func(k, v []byte) error {
		buf = appendRecord(buf[:0], k, v)
		h.Write(buf)
		last, size = append(last[:0], k...), size+len(buf)
		if size < rangeBytes {
			return nil
		}
		if cut(); total >= roundBytes {
			return kv.ErrStop
		}
		return nil
	})
	if err == nil && size > 0 {
		cut()
	}
	return spans, err
}

// round takes the answers to one frame of ranges.
func (l *learner) round(spans []span) error {
	for i := 0; i < len(spans); {
		kind, body, err := l.f.read(maxChunk)
		if err != nil {
			return err
		}
		if kind == kindSame {
			n, w := binary.Uvarint(body)
			if w != len(body) || n == 0 || n > uint64(len(spans)-i) {
				return fmt.Errorf("%d ranges said to be the same, of %d: %w", n, len(spans)-i, ErrMalformed)
			}
			i += int(n)
			l.from = after(spans[i-1].last)
			continue
		}
		to := after(spans[i].last)
		for first := true; ; first = false {
			if kind != kindChunk {
				return fmt.Errorf("frame %q: %w", kind, ErrMalformed)
			}
			last, err := l.take(body, to, first)
			if err != nil {
				return err
			}
			if last {
				break
			}
			if kind, body, err = l.f.read(maxChunk); err != nil {
				return err
			}
		}
		l.from = to
		i++
	}
	return nil
}

// take puts a chunk in the place of what is here between l.from and to; the first one of a range clears it.
func (l *learner) take(body, to []byte, first bool) (last bool, err error) {
	if len(body) < chunkHead || body[0] > 1 {
		return false, fmt.Errorf("chunk of %d bytes: %w", len(body), ErrMalformed)
	}
	records := body[chunkHead:]
	if digest := blake3.Sum256(records); !bytes.Equal(digest[:], body[1:chunkHead]) {
		return false, fmt.Errorf("a chunk does not match its digest: %w", ErrMalformed)
	}
	if first {
		if err := l.w.DeleteRange(l.from, to); err != nil {
			return false, err
		}
	}
	for at := l.from; len(records) > 0; {
		var k, v []byte
		if k, v, records, err = parseRecord(records); err != nil {
			return false, err
		}
		if bytes.Compare(k, at) < 0 || to != nil && bytes.Compare(k, to) >= 0 {
			return false, fmt.Errorf("key outside its range: %w", ErrMalformed)
		}
		at = after(k)
		if err := l.w.Set(k, v); err != nil {
			return false, err
		}
	}
	return body[0] == 1, nil
}

// after is the smallest key above k.
func after(k []byte) []byte { return append(bytes.Clone(k), 0) }

func digestOf(r kv.Reader, from, to []byte) (digest [32]byte, err error) {
	h := blake3.New()
	var buf []byte
	err = r.Scan(from, to, func(k, v []byte) error {
		buf = appendRecord(buf[:0], k, v)
		_, err := h.Write(buf)
		return err
	})
	h.Sum(digest[:0])
	return digest, err
}

func appendRecord(b, k, v []byte) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(k))), k...)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func parseRecord(b []byte) (k, v, rest []byte, err error) {
	if k, b, err = parseBytes(b); err != nil {
		return nil, nil, nil, err
	}
	v, b, err = parseBytes(b)
	return k, v, b, err
}

func parseBytes(b []byte) (field, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, fmt.Errorf("record cut short: %w", ErrMalformed)
	}
	return b[w : w+int(n)], b[w+int(n):], nil
}

func appendSpan(b []byte, s span) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(s.last))), s.last...)
	return append(b, s.digest[:]...)
}

func parseSpan(b []byte) (s span, rest []byte, err error) {
	if s.last, b, err = parseBytes(b); err != nil {
		return s, nil, err
	}
	if copy(s.digest[:], b) < len(s.digest) {
		return s, nil, fmt.Errorf("range cut short: %w", ErrMalformed)
	}
	return s, b[len(s.digest):], nil
}

// frames reads frames exactly and writes them through a buffer.
type frames struct {
	in  io.Reader
	out *bufio.Writer
	buf []byte
}

func newFrames(rw io.ReadWriter) *frames {
	return &frames{in: rw, out: bufio.NewWriterSize(rw, 64<<10)}
}

func (f *frames) write(kind byte, body []byte) error {
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	head[4] = kind
	if _, err := f.out.Write(head[:]); err != nil {
		return err
	}
	_, err := f.out.Write(body)
	return err
}

func (f *frames) flush() error { return f.out.Flush() }

func (f *frames) send(kind byte, body []byte) error {
	if err := f.write(kind, body); err != nil {
		return err
	}
	return f.flush()
}

// read returns a frame; its body is valid until the next read. Memory grows with what has arrived.
func (f *frames) read(limit uint32) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(f.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return 0, nil, fmt.Errorf("frame of %d bytes: %w", n, ErrMalformed)
	}
	f.buf = f.buf[:0]
	for uint32(len(f.buf)) < n {
		at := len(f.buf)
		step := int(min(n-uint32(at), 1<<20))
		if cap(f.buf) < at+step {
			f.buf = append(f.buf, make([]byte, step)...)
		}
		f.buf = f.buf[:at+step]
		if _, err := io.ReadFull(f.in, f.buf[at:]); err != nil {
			return 0, nil, err
		}
	}
	return head[4], f.buf, nil
}
