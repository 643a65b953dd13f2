package transport

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Frames on call connections: length of what follows u32, kind u8, id u64, body; big endian.
//
//	request  timeout in µs u64 (0: none), method (u8 length, bytes), the request
//	reply    the answer
//	failure  api.Error as JSON
//	cancel   nothing: the caller has given up
const (
	callHead = 4 + 1 + 8
	// MaxCall bounds a request or an answer, in bytes; a service is the way for more.
	MaxCall      = 16 << 20
	maxCallFrame = MaxCall + 1 + 8 + 8 + 1 + maxMethod
)

type callKind uint8

const (
	callRequest callKind = iota + 1
	callReply
	callFailure
	callCancel
)

type callFrame struct {
	kind callKind
	id   uint64
	body []byte
}

// newCallFrame starts a frame with room for size bytes of body; finish it with sealCall.
func newCallFrame(k callKind, id uint64, size int) []byte {
	b := make([]byte, 4, callHead+size)
	b = append(b, byte(k))
	return binary.BigEndian.AppendUint64(b, id)
}

func sealCall(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func encodeRequest(id uint64, timeout time.Duration, method string, req []byte) []byte {
	b := newCallFrame(callRequest, id, 8+1+len(method)+len(req))
	b = binary.BigEndian.AppendUint64(b, uint64(timeout.Microseconds()))
	b = append(b, byte(len(method)))
	b = append(b, method...)
	return sealCall(append(b, req...))
}

func parseRequest(b []byte) (timeout time.Duration, method string, req []byte, err error) {
	if len(b) < 9 || len(b) < 9+int(b[8]) || b[8] > maxMethod {
		return 0, "", nil, fmt.Errorf("%w: request of %d bytes", errFrame, len(b))
	}
	const forever = uint64(100 * 365 * 24 * time.Hour / time.Microsecond)
	timeout = time.Duration(min(binary.BigEndian.Uint64(b), forever)) * time.Microsecond
	end := 9 + int(b[8])
	return timeout, string(b[9:end]), b[end:len(b):len(b)], nil
}

func encodeReply(id uint64, resp []byte) []byte {
	return sealCall(append(newCallFrame(callReply, id, len(resp)), resp...))
}

func encodeFailure(id uint64, e *api.Error) []byte {
	body, err := json.Marshal(e)
	if err != nil || len(body) > maxCallFrame/2 {
		body = []byte(`{"code":"failed","why":"error cannot be shown"}`)
	}
	return sealCall(append(newCallFrame(callFailure, id, len(body)), body...))
}

func parseFailure(b []byte) error {
	e := &api.Error{}
	if err := json.Unmarshal(b, e); err != nil {
		return fmt.Errorf("%w: failure: %w", errFrame, err)
	}
	return e
}

// readCall reads one frame. Its body is the caller's to keep.
func readCall(r io.Reader) (callFrame, error) {
	var head [callHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return callFrame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	f := callFrame{kind: callKind(head[4]), id: binary.BigEndian.Uint64(head[5:])}
	if n < callHead-4 || n > maxCallFrame || f.kind < callRequest || f.kind > callCancel {
		return f, fmt.Errorf("%w: %d bytes of kind %d", errFrame, n, f.kind)
	}
	var err error
	f.body, err = readBody(r, nil, int(n-(callHead-4)))
	return f, err
}

// callWriter writes what is queued on q, as much as there is in one go, until done or an error.
func callWriter(w io.Writer, q <-chan []byte, done <-chan struct{}) error {
	const batch = 128 << 10
	var buf []byte
	for {
		var first []byte
		select {
		case first = <-q:
		case <-done:
			return nil
		}
		buf = append(buf[:0], first...)
	drain:
		for len(buf) < batch {
			select {
			case next := <-q:
				buf = append(buf, next...)
			default:
				break drain
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		if cap(buf) > keepBuffer {
			buf = nil
		}
	}
}
