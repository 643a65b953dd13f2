package manifest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// The protocol by which a learner makes its state equal to a source's. It is strictly alternating, so it runs
// over any stream without a goroutine; one request names many directories. All frames: 4 bytes length, 1
// byte type, body.
//
//	learner  hello   version, uvarint number of its newest conflict record, 16 bytes chain
//	source   state   32 bytes root digest, pairs (key, value) of everything that is neither entry nor
//	                 conflict, uvarint oldest conflict number, uvarint first number that follows
//	source   records values of the conflict records; flag in front: 1 more frames follow
//	learner  list    directories' paths                  | bye
//	source   entries for each directory, in order: (name, value, for a directory its digest); flag in front
const (
	frameHello   = 'H'
	frameState   = 'S'
	frameRecords = 'C'
	frameList    = 'L'
	frameEntries = 'D'
	frameBye     = 'B'

	diffVersion = 1

	maxFrame    = 1 << 20
	frameTarget = 64 << 10 // entries and records are cut at about this size
	listTarget  = 64 << 10 // and a list of directories
)

// DiffStats says what a FetchDiff did.
type DiffStats struct {
	Dirs           int // directories whose listings were compared
	Puts, Deletes  int // entries written and removed
	Sent, Received int64
}

// frames reads and writes frames; out may be buffered, in is read exactly.
type frames struct {
	in             io.Reader
	out            *bufio.Writer
	buf            []byte
	sent, received int64
}

func newFrames(rw io.ReadWriter) *frames {
	return &frames{in: rw, out: bufio.NewWriterSize(rw, 64<<10)}
}

func (f *frames) write(kind byte, body []byte) error {
	if len(body) >= maxFrame {
		return fmt.Errorf("frame %q of %d bytes is too long", kind, len(body))
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)+1))
	head[4] = kind
	f.sent += int64(len(head) + len(body))
	if _, err := f.out.Write(head[:]); err != nil {
		return err
	}
	_, err := f.out.Write(body)
	return err
}

// read returns the next frame; body is valid until the next read.
func (f *frames) read() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(f.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes: %w", n, errTruncated)
	}
	n--
	if uint32(cap(f.buf)) < n {
		f.buf = make([]byte, n)
	}
	f.buf = f.buf[:n]
	if _, err := io.ReadFull(f.in, f.buf); err != nil {
		return 0, nil, err
	}
	f.received += int64(len(head)) + int64(n)
	return head[4], f.buf, nil
}

func (f *frames) expect(kind byte) (decoder, error) {
	got, body, err := f.read()
	if err != nil {
		return decoder{}, err
	}
	if got != kind {
		return decoder{}, fmt.Errorf("frame %q where %q was due", got, kind)
	}
	return decoder{b: body}, nil
}

// plainKeys are the ranges of keys that a state frame carries whole: few and small.
var plainKeys = [][2][]byte{
	{{tagAuthor}, {tagAuthorID + 1}},
	{{tagPolicy}, {tagPolicy + 1}},
	{{tagRoot}, {tagStats + 1}}, // root and counters
}
