package replica

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/blake3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A snapshot stream is
//
//	magic, level, BLAKE3-256 of both, length and bytes of raft's SnapshotMetadata, time, line (see Line.Append), length and bytes of core.Terms,
//	BLAKE3-256 of everything before,
//	records (tag, key length, key, value length, value) in key order: sessions, then the machine's,
//	end tag, BLAKE3-256 of everything before
//
// with numbers as varints. The level comes first whatever follows: a later one may change the rest. Nothing of it is put in force before the hash at the end was verified, and nothing is
// concluded from the head before its own was.
const (
	magic        = magicName + "4\n"
	magicName    = "lockstep snapshot " // followed by the version, one digit
	magicVersion = 4
)

const (
	tagEnd     = 0
	tagSession = 1
	tagMachine = 2

	maxMeta       = 1 << 20
	maxKey        = 1 << 20
	maxValue      = 64 << 20
	restoreChunk  = 4 << 20 // bytes per batch while a snapshot is written
	snapshotBlock = 64 << 10
)

// ErrOtherHistory: a snapshot is of another history than the state, see FollowForks.
var ErrOtherHistory = errors.New("the state is of another history")

// ErrSnapshot wraps what is wrong with a snapshot stream: malformed, cut short, altered, of another version.
var ErrSnapshot = errors.New("bad snapshot")

// SnapshotVersionError says that a stream begins as one of another version of the format does, which this program does
// not read. Nothing of such a stream can be verified here; whether it is damaged as well, its own version can tell.
type SnapshotVersionError struct {
	Version int
}

func (e *SnapshotVersionError) Error() string {
	return fmt.Sprintf("it is in version %d of the snapshot's form, this program reads version %d", e.Version, magicVersion)
}

// SnapshotLevel reads the cluster level of the snapshot that a stream begins with, verified. The level may be above what
// the program knows. Errors wrap ErrSnapshot; a stream of another version is a SnapshotVersionError as well.
func SnapshotLevel(stream io.Reader) (uint64, error) {
	level, err := newSnapshotReader(stream).level()
	if err != nil {
		return 0, fmt.Errorf("level of a snapshot: %w: %w", ErrSnapshot, err)
	}
	return level, nil
}

// WriteSnapshot writes the state in view, a StateView, to w.
func (r *Replica) WriteSnapshot(view kv.Reader, w io.Writer) error {
	return writeSnapshot(view, w, true)
}

// WriteEngineState writes the snapshot in view without the machine's part, for RestoreDiff.
func (r *Replica) WriteEngineState(view kv.Reader, w io.Writer) error {
	return writeSnapshot(view, w, false)
}

func writeSnapshot(view kv.Reader, w io.Writer, whole bool) error {
	st, err := readState(view)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	out := &snapshotWriter{w: bufio.NewWriterSize(w, snapshotBlock), hash: blake3.New()}
	meta, err := proto.Marshal(st.meta())
	if err != nil {
		return fmt.Errorf("write snapshot at %d: %w", st.at.Index, err)
	}
	out.write(binary.AppendUvarint([]byte(magic), st.level))
	out.write(out.hash.Sum(nil))
	out.field(meta)
	out.write(st.line.Append(binary.AppendVarint(nil, st.time)))
	out.field(st.terms.Append(nil))
	out.write(out.hash.Sum(nil))
	out.records(view, tagSession, st.slot.sessions())
	if whole {
		out.records(view, tagMachine, st.slot.machine())
	}
	out.write([]byte{tagEnd})
	out.write(out.hash.Sum(nil))
	if out.err == nil {
		out.err = out.w.Flush()
	}
	if out.err != nil {
		return fmt.Errorf("write snapshot at %d: %w", st.at.Index, out.err)
	}
	return nil
}

// snapshotWriter hashes what it writes and keeps the first error.
type snapshotWriter struct {
	w    *bufio.Writer
	hash *blake3.Hasher
	err  error
	buf  []byte
}

func (o *snapshotWriter) write(b []byte) {
	if o.err != nil {
		return
	}
	o.hash.Write(b)
	_, o.err = o.w.Write(b)
}

func (o *snapshotWriter) field(b []byte) {
	o.buf = binary.AppendUvarint(o.buf[:0], uint64(len(b)))
	o.write(o.buf)
	o.write(b)
}

func (o *snapshotWriter) records(view kv.Reader, tag byte, prefix []byte) {
	err := view.Scan(prefix, kv.PrefixEnd(prefix), func(key, value []byte) error {
		o.write([]byte{tag})
		o.field(key[len(prefix):])
		o.field(value)
		return o.err
	})
	if o.err == nil {
		o.err = err
	}
}

// snapshotReader reads and hashes a stream, byte-exactly if r is an io.ByteReader itself.
type snapshotReader struct {
	r    io.Reader
	one  io.ByteReader
	hash *blake3.Hasher
}

func newSnapshotReader(r io.Reader) *snapshotReader {
	one, ok := r.(io.ByteReader)
	if !ok {
		b := bufio.NewReaderSize(r, snapshotBlock)
		r, one = b, b
	}
	return &snapshotReader{r: r, one: one, hash: blake3.New()}
}

// ReadByte lets package binary read varints.
func (s *snapshotReader) ReadByte() (byte, error) {
	b, err := s.one.ReadByte()
	if err == nil {
		s.hash.Write([]byte{b})
	}
	return b, err
}

func (s *snapshotReader) fill(buf []byte) error {
	_, err := io.ReadFull(s.r, buf)
	s.hash.Write(buf)
	return err
}

// field reads into buf, which is grown only by what has arrived: a length proves nothing.
func (s *snapshotReader) field(buf []byte, limit uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(s)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("field of %d bytes", n)
	}
	buf = buf[:0]
	for n > 0 {
		step := int(min(n, snapshotBlock))
		at := len(buf)
		buf = append(buf, make([]byte, step)...)
		if err := s.fill(buf[at:]); err != nil {
			return nil, err
		}
		n -= uint64(step)
	}
	return buf, nil
}

// level reads the very beginning: what follows is of that level.
func (s *snapshotReader) level() (level uint64, err error) {
	found := make([]byte, len(magic))
	if err := s.fill(found); err != nil {
		return 0, err
	}
	if string(found) != magic {
		return 0, foreignMagic(found)
	}
	if level, err = binary.ReadUvarint(s); err != nil {
		return 0, err
	}
	if level < core.FirstLevel {
		return 0, fmt.Errorf("level %d", level)
	}
	return level, s.verify()
}

// foreignMagic says what a stream is whose first bytes are not magic.
func foreignMagic(found []byte) error {
	if rest, ok := strings.CutPrefix(string(found), magicName); ok && rest[0] >= '0' && rest[0] <= '9' && rest[1] == '\n' {
		return &SnapshotVersionError{Version: int(rest[0] - '0')}
	}
	return errors.New("no snapshot")
}

// head reads what is between level and records.
func (s *snapshotReader) head(level uint64) (state, error) {
	raw, err := s.field(nil, maxMeta)
	if err != nil {
		return state{}, err
	}
	meta := &raftpb.SnapshotMetadata{}
	if err := proto.Unmarshal(raw, meta); err != nil {
		return state{}, err
	}
	st := state{at: core.Position{Term: meta.GetTerm(), Index: meta.GetIndex()}, level: level}
	if cs := meta.GetConfState(); len(cs.GetVoters()) > 0 { // an observer's is empty
		st.conf = cs
	}
	if st.time, err = binary.ReadVarint(s); err != nil {
		return st, err
	}
	if st.line, err = s.line(); err != nil {
		return st, err
	}
	if raw, err = s.field(nil, maxMeta); err != nil {
		return st, err
	}
	if st.terms, err = core.DecodeTerms(raw); err != nil {
		return st, err
	}
	return st, s.verify()
}

// verify reads the hash of everything before it.
func (s *snapshotReader) verify() error {
	want := s.hash.Sum(nil)
	got := make([]byte, len(want))
	if err := s.fill(got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("hash does not match")
	}
	return nil
}

func (s *snapshotReader) line() (l Line, err error) {
	if err := s.fill(l.History[:]); err != nil {
		return l, err
	}
	if err := s.fill(l.Before[:]); err != nil {
		return l, err
	}
	for _, v := range []*uint64{&l.Fork.Term, &l.Fork.Index, &l.Start, &l.Seed} {
		if *v, err = binary.ReadUvarint(s); err != nil {
			return l, err
		}
	}
	return l, nil
}

// records hands every record to put and then verifies the hash.
func (s *snapshotReader) records(put func(tag byte, key, value []byte) error) error {
	var key, value []byte
	for {
		tag, err := s.ReadByte()
		if err != nil {
			return err
		}
		if tag == tagEnd {
			break
		}
		if key, err = s.field(key, maxKey); err != nil {
			return err
		}
		if value, err = s.field(value, maxValue); err != nil {
			return err
		}
		if err := put(tag, key, value); err != nil {
			return err
		}
	}
	return s.verify()
}

// Restore replaces the state by the snapshot in stream; it is durable when Restore returns. A snapshot of the
// same history that is not ahead of the state is left alone, with no error: either way raft is told of SnapshotMeta then. Until
// the last moment the old state stays in force, also over a crash. For the applier. Errors: ErrSnapshot, a
// NewerLevelError or the store's; the old state is then unchanged. If stream is an io.ByteReader nothing after the snapshot is
// read.
func (r *Replica) Restore(stream io.Reader) error {
	in := newSnapshotReader(stream)
	next, wanted, err := r.beginRestore(in, r.state.slot.other())
	if err != nil || !wanted {
		return err
	}
	c := chunks{store: r.store, slot: next.slot}
	defer c.discard()
	if err = c.begin(); err == nil {
		err = in.records(c.put)
	}
	if err == nil {
		err = c.commit()
	}
	if c.failed != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, c.failed)
	}
	if err != nil {
		return fmt.Errorf("restore snapshot at %d: %w: %w", next.at.Index, ErrSnapshot, err)
	}
	b := r.store.Batch()
	defer b.Discard()
	if err := clearSpare(b, r.state.slot); err != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, err)
	}
	return r.install(b, next)
}

// ahead says whether a snapshot of the same history at at has something to offer. A state in quarantine is worth less
// than one of the same position; raft goes on from where it is, so an older one is of no use even then.
func (r *Replica) ahead(at core.Position) bool {
	if r.state.quarantine != nil {
		return at.Index >= r.state.at.Index
	}
	return at.Index > r.state.at.Index
}

// beginRestore reads the head; wanted is false if the state covers the snapshot already.
func (r *Replica) beginRestore(in *snapshotReader, to slot) (next state, wanted bool, err error) {
	level, err := in.level()
	if err == nil && !r.knows(level) {
		return next, false, fmt.Errorf("restore snapshot: %w", r.newer(level))
	}
	if err == nil {
		next, err = in.head(level)
	}
	if err != nil {
		return next, false, fmt.Errorf("restore snapshot: %w: %w", ErrSnapshot, err)
	}
	next.slot = to
	if r.state.at.Index == 0 || next.line.History == r.state.line.History {
		return next, r.ahead(next.at), nil
	}
	if !r.followForks {
		return next, false, fmt.Errorf("restore snapshot of history %x: %w", next.line.History, ErrOtherHistory)
	}
	return next, true, nil
}

// install commits b with the new position, durably, and loads what it put in force.
func (r *Replica) install(b kv.Batch, next state) error {
	next.installed = next.at
	if err := next.writeAll(b); err != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, err)
	}
	if err := r.store.Sync(); err != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, err)
	}
	if err := r.load(); err != nil {
		return fmt.Errorf("restore snapshot at %d: %w", next.at.Index, err)
	}
	return nil
}

// chunks writes records to a slot in batches of bounded size.
type chunks struct {
	store  kv.Store
	slot   slot
	batch  kv.Batch
	bytes  int
	failed error // the store's first error, as against the stream's
}

// begin drops what an interrupted restore may have left.
func (c *chunks) begin() error {
	c.batch = c.store.Batch()
	c.failed = clearSpare(c.batch, c.slot)
	return c.failed
}

func (c *chunks) put(tag byte, key, value []byte) error {
	var prefix []byte
	switch tag {
	case tagSession:
		prefix = c.slot.sessions()
	case tagMachine:
		prefix = c.slot.machine()
	default:
		return fmt.Errorf("record of kind %d", tag)
	}
	if c.failed = c.batch.Set(append(prefix, key...), value); c.failed != nil {
		return c.failed
	}
	if c.bytes += len(key) + len(value); c.bytes < restoreChunk {
		return nil
	}
	if err := c.commit(); err != nil {
		return err
	}
	c.batch, c.bytes = c.store.Batch(), 0
	return nil
}

func (c *chunks) discard() { c.batch.Discard() }

func (c *chunks) commit() error {
	c.failed = c.batch.Commit()
	return c.failed
}
