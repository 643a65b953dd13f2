package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"
)

// Frames on raft connections: length of the body u32, kind u8, body; big endian. The body of a messages frame is
// a sequence of {group uvarint, length u32, raftpb.Message}.
const (
	frameHead = 5
	// MaxFrame bounds the body of a messages frame, and so one raft message, in bytes.
	MaxFrame = 64 << 20
	// softFrame is where a frame is ended and written although more is queued: beyond that size nothing is
	// gained, and buffers stay small.
	softFrame  = 1 << 20
	maxControl = 1 << 10
	// keepBuffer is the largest buffer that is kept for the next frame.
	keepBuffer = 4 << 20
)

type kind uint8

const (
	kindMessages kind = iota + 1
	kindPing          // from the side that dialed: 8 bytes that come back in a pong
	kindPong
	kindBeat       // from the side that accepted: it lives, whatever its receiver does
	kindGoodbye    // the process stops
	kindGoodbyeAck // a goodbye was noted
	kindClose      // the connection ends for the reason in the body; the process lives
)

var errFrame = errors.New("malformed frame")

// readHead reads a frame's head and judges it before anything is allocated.
func readHead(r io.Reader, head *[frameHead]byte) (kind, int, error) {
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	n, k := binary.BigEndian.Uint32(head[:]), kind(head[4])
	limit := uint32(maxControl)
	switch {
	case k == kindMessages:
		limit = MaxFrame
	case k < kindMessages || k > kindClose:
		return 0, 0, fmt.Errorf("%w: kind %d", errFrame, k)
	}
	if n > limit {
		return 0, 0, fmt.Errorf("%w: %d bytes of kind %d, at most %d", errFrame, n, k, limit)
	}
	return k, int(n), nil
}

// readBody reads n bytes into buf or, if that is too small, a larger one, which grows only as data arrives.
func readBody(r io.Reader, buf []byte, n int) ([]byte, error) {
	const step = 1 << 20
	if cap(buf) > keepBuffer && n <= keepBuffer {
		buf = nil
	}
	buf = buf[:0]
	for len(buf) < n {
		from := len(buf)
		more := min(n-from, max(step, cap(buf)-from))
		buf = slices.Grow(buf, more)[:from+more]
		if _, err := io.ReadFull(r, buf[from:]); err != nil {
			return buf, err
		}
	}
	return buf, nil
}

func appendControl(b []byte, k kind, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, byte(k))
	return append(b, body...)
}

// outgoing is a queued message.
type outgoing struct {
	group uint64
	msg   *raftpb.Message
	cost  int
}

// messageCost approximates the encoded size without computing it.
func messageCost(m *raftpb.Message) int {
	n := 64 + len(m.Context)
	for _, e := range m.Entries {
		n += 24 + len(e.Data)
	}
	if m.Snapshot != nil {
		n += len(m.Snapshot.Data)
	}
	for _, r := range m.Responses {
		n += messageCost(r)
	}
	return n
}

// appendMessages encodes one frame from the front of batch, up to about softFrame bytes, and returns how many
// messages it took; at least one. A message that fits no frame is an error, with taken == 1 and b as it was.
func appendMessages(b []byte, batch []outgoing) (_ []byte, taken int, err error) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(kindMessages))
	for _, o := range batch {
		before := len(b)
		b = binary.AppendUvarint(b, o.group)
		b = append(b, 0, 0, 0, 0)
		at := len(b)
		if b, err = (proto.MarshalOptions{}).MarshalAppend(b, o.msg); err != nil {
			err = fmt.Errorf("encode message: %w", err)
		} else if len(b)-start-frameHead > MaxFrame {
			err = fmt.Errorf("message of %d bytes: at most %d fit a frame", len(b)-at, MaxFrame)
		}
		if err != nil {
			if taken == 0 {
				return b[:start], 1, err
			}
			b = b[:before] // it comes first in the next frame, and fails alone
			break
		}
		binary.BigEndian.PutUint32(b[at-4:], uint32(len(b)-at))
		taken++
		if len(b)-start >= softFrame {
			break
		}
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-frameHead))
	return b, taken, nil
}

// parseMessages decodes the body of a messages frame and hands on runs of messages for the same group. Nothing
// that it hands on refers to body.
func parseMessages(body []byte, deliver func(group uint64, msgs []*raftpb.Message)) error {
	var group uint64
	var run []*raftpb.Message
	for len(body) > 0 {
		g, w := binary.Uvarint(body)
		if w <= 0 || len(body)-w < 4 {
			return fmt.Errorf("%w: group", errFrame)
		}
		n := binary.BigEndian.Uint32(body[w:])
		body = body[w+4:]
		if uint64(n) > uint64(len(body)) {
			return fmt.Errorf("%w: message of %d bytes in %d", errFrame, n, len(body))
		}
		m := &raftpb.Message{}
		if err := proto.Unmarshal(body[:n], m); err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
		body = body[n:]
		if g != group && len(run) > 0 {
			deliver(group, run)
			run = nil
		}
		group = g
		run = append(run, m)
	}
	if len(run) > 0 {
		deliver(group, run)
	}
	return nil
}
