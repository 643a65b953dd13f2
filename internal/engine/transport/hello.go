package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// The hello is the first frame on a connection, from the side that dialed; the answer is the second. Both are a
// u32 length and a body, big endian:
//
//	hello   magic[4] version u8, cluster[16], from u64, to u64, boot u64, service (u8 length, bytes)
//	answer  verdict u8, boot u64, text
//
// Magic and version come first and stay there in every version to come.
const (
	helloMagic   = "LKST"
	helloVersion = 1
	maxHello     = 1 << 10
	maxService   = 64
	maxText      = 512
	maxMethod    = 64
)

var errHello = errors.New("malformed hello")

// hello of a joining server has from and to 0.
type hello struct {
	version  uint8
	cluster  access.ClusterID
	from, to uint64
	boot     uint64 // incarnation of the process
	service  string
}

type verdict uint8

const (
	accepted verdict = iota
	wrongVersion
	wrongCluster
	wrongNode
	noCertificate
	unknownService
	stopping // this process ends
	busy
)

type answer struct {
	verdict verdict
	boot    uint64
	text    string
}

// refusal is what the dialing side makes of an answer that is not accepted.
type refusal struct {
	verdict verdict
	text    string
}

func (r *refusal) Error() string { return "refused: " + r.text }

func (h *hello) append(b []byte) []byte {
	b = append(b, 0, 0, 0, 0)
	at := len(b)
	b = append(b, helloMagic...)
	b = append(b, h.version)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.from)
	b = binary.BigEndian.AppendUint64(b, h.to)
	b = binary.BigEndian.AppendUint64(b, h.boot)
	b = append(b, byte(len(h.service)))
	b = append(b, h.service...)
	binary.BigEndian.PutUint32(b[at-4:], uint32(len(b)-at))
	return b
}

// parseHello of another version returns with only the version set.
func parseHello(b []byte) (hello, error) {
	var h hello
	if len(b) < len(helloMagic)+1 || string(b[:len(helloMagic)]) != helloMagic {
		return h, errHello
	}
	h.version = b[len(helloMagic)]
	b = b[len(helloMagic)+1:]
	if h.version != helloVersion {
		return h, nil
	}
	const fixed = 16 + 8 + 8 + 8 + 1
	if len(b) < fixed || len(b) != fixed+int(b[fixed-1]) {
		return h, errHello
	}
	copy(h.cluster[:], b)
	h.from = binary.BigEndian.Uint64(b[16:])
	h.to = binary.BigEndian.Uint64(b[24:])
	h.boot = binary.BigEndian.Uint64(b[32:])
	h.service = string(b[fixed:])
	if h.service == "" || len(h.service) > maxService {
		return h, errHello
	}
	return h, nil
}

func (a *answer) append(b []byte) []byte {
	text := a.text[:min(len(a.text), maxText)]
	b = binary.BigEndian.AppendUint32(b, uint32(1+8+len(text)))
	b = append(b, byte(a.verdict))
	b = binary.BigEndian.AppendUint64(b, a.boot)
	return append(b, text...)
}

func parseAnswer(b []byte) (answer, error) {
	if len(b) < 9 {
		return answer{}, errHello
	}
	return answer{verdict(b[0]), binary.BigEndian.Uint64(b[1:]), string(b[9:])}, nil
}

// readShort reads one frame of the hello exchange, and not a byte beyond it.
func readShort(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxHello {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errHello, n, maxHello)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}
