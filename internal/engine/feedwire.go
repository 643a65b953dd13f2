package engine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

const (
	feedVersion  = 1
	maxHello     = 64 << 10
	maxFeedFrame = 80 << 20
)

// hello opens a feed: who asks, and what it has.
type hello struct {
	Version int
	Cluster [16]byte
	Group   uint64
	Line    replica.Line
	Index   uint64
	Term    uint64
	Oldest  uint64 // index to which it could take its state back
	Whole   bool   // it takes the whole state if that is the decision
}

// welcome answers it. After it come, for SNAP that was asked for (hello.Whole), the state at At; then, for DIFF as
// well, frames of entries. Else the feed ends.
type welcome struct {
	Plan  catchup.Plan
	Voter bool         // the source votes: its word about divergence counts
	Line  replica.Line // that the entries, or the state, are of
	Path  []uint64     // from the source to a voter that has a leader; empty: cut off at present
	At    core.Position
	Whole bool // the state follows
}

// A frame of a feed: length u32, kind u8, body.
type frameKind uint8

const (
	frameHello   frameKind = iota // JSON: hello, welcome
	frameEntries                  // applied and commit index, the latter's time, then length-prefixed entries
	frameAck                      // learner to source: applied index, durable index
	framePath                     // JSON: the source's path has changed
	frameBarrier                  // an index: catching up ends with it
)

// news is the head of a frame of entries.
type news struct {
	applied uint64 // at the source
	commit  uint64 // the highest that is known to be committed
	at      int64  // when that was, Unix ns, by the clock of the voter that said so
}

func appendNews(body []byte, n news) []byte {
	body = binary.BigEndian.AppendUint64(body, n.applied)
	body = binary.BigEndian.AppendUint64(body, n.commit)
	return binary.BigEndian.AppendUint64(body, uint64(n.at))
}

func encodeEntries(n news, entries []*raftpb.Entry) ([]byte, error) {
	size := 24
	for _, e := range entries {
		size += len(e.GetData()) + 32
	}
	body := appendNews(make([]byte, 0, size), n)
	for _, e := range entries {
		body = binary.AppendUvarint(body, uint64(proto.Size(e)))
		var err error
		if body, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(body, e); err != nil {
			return nil, fmt.Errorf("encode entry %d: %w", e.GetIndex(), err)
		}
	}
	return body, nil
}

func decodeEntries(body []byte) (n news, entries []*raftpb.Entry, err error) {
	if len(body) < 24 {
		return n, nil, errShortMessage
	}
	n.applied, n.commit = binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:])
	n.at = int64(binary.BigEndian.Uint64(body[16:]))
	for body = body[24:]; len(body) > 0; {
		size, w := binary.Uvarint(body)
		if w <= 0 || size > uint64(len(body)-w) {
			return n, nil, errShortMessage
		}
		e := &raftpb.Entry{}
		if err := proto.Unmarshal(body[w:w+int(size)], e); err != nil {
			return n, nil, fmt.Errorf("engine: decode entry: %w", err)
		}
		if len(entries) > 0 && e.GetIndex() != entries[len(entries)-1].GetIndex()+1 {
			return n, nil, fmt.Errorf("engine: entry %d follows %d in a frame", e.GetIndex(), entries[len(entries)-1].GetIndex())
		}
		entries = append(entries, e)
		body = body[w+int(size):]
	}
	return n, entries, nil
}

func encodeAck(applied, durable uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, applied), durable)
}

func decodeAck(body []byte) (applied, durable uint64, err error) {
	if len(body) != 16 {
		return 0, 0, errShortMessage
	}
	return binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:]), nil
}

func appendIndex(b []byte, index uint64) []byte { return binary.BigEndian.AppendUint64(b, index) }

func parseIndex(body []byte) (uint64, error) {
	if len(body) != 8 {
		return 0, errShortMessage
	}
	return binary.BigEndian.Uint64(body), nil
}

func writeFrame(w io.Writer, kind frameKind, body []byte) error {
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 5), uint32(len(body)))
	if _, err := w.Write(append(head, byte(kind))); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// readFrame reads a frame of at most limit bytes. Memory is taken as the body arrives: a length proves nothing.
func readFrame(r io.Reader, limit uint32) (frameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return 0, nil, fmt.Errorf("engine: frame of %d bytes is longer than %d", n, limit)
	}
	body := make([]byte, 0, min(n, 2<<20))
	for uint32(len(body)) < n {
		at := len(body)
		body = append(body, make([]byte, min(n-uint32(at), 2<<20))...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			return 0, nil, err
		}
	}
	return frameKind(head[4]), body, nil
}

func writeJSON(w io.Writer, kind frameKind, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, kind, body)
}

func readJSON(r io.Reader, v any) error {
	kind, body, err := readFrame(r, maxHello)
	if err != nil {
		return err
	}
	if kind != frameHello {
		return fmt.Errorf("engine: frame of kind %d begins a feed", kind)
	}
	return json.Unmarshal(body, v)
}

// strict is a connection whose reads and writes fail when the other side is silent, or takes nothing, for that long;
// 0: it may.
type strict struct {
	net.Conn
	patience time.Duration
}

func (c *strict) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(c.until()); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *strict) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(c.until()); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *strict) until() time.Time {
	if c.patience == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.patience)
}
