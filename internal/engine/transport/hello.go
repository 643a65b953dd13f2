package transport

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
)

// The hello is the first frame on a connection, from the side that dialed; the answer is the second. Both are a
// u32 length and a body, big endian:
//
//	hello   magic[4] version u8, cluster[16], from u64, to u64, boot u64, age u64,
//	        service (u8 length, bytes), address (u8 length, bytes)
//	answer  verdict u8, boot u64, age u64, text
//
// Magic and version come first and stay there in every version to come.
const (
	helloMagic   = "LKST"
	helloVersion = 1
	maxHello     = 1 << 10
	maxService   = 64
	maxText      = 960
	maxMethod    = 64
)

var errHello = errors.New("malformed hello")

// hello of a joining server has from and to 0.
type hello struct {
	version  uint8
	cluster  access.ClusterID
	from, to uint64
	boot     uint64 // incarnation of the process
	age      uint64 // see Config.Age
	service  string
	address  string // where the dialing side is to be found; empty: unknown
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
	denied // for good: Config.Admit refused; text is an api.Error as JSON
)

type answer struct {
	verdict verdict
	boot    uint64
	age     uint64
	text    string
}

// refusal is what the dialing side makes of an answer that is not accepted.
type refusal struct {
	verdict verdict
	text    string
	by      uint64 // node that said so; 0: this one
}

func (r *refusal) Error() string { return "refused: " + r.text }

// denial makes a refusal of Config.Admit's error.
func denial(e *api.Error) *refusal {
	b, err := json.Marshal(e)
	if err != nil || len(b) > maxText {
		b = []byte(`{"code":"denied","why":"the node may not take part"}`)
	}
	return &refusal{verdict: denied, text: string(b)}
}

// said reads a denial back; nil if it is none.
func (r *refusal) said() *api.Error {
	var e api.Error
	if r.verdict != denied || json.Unmarshal([]byte(r.text), &e) != nil {
		return nil
	}
	return &e
}

func (h *hello) append(b []byte) []byte {
	b = append(b, 0, 0, 0, 0)
	at := len(b)
	b = append(b, helloMagic...)
	b = append(b, h.version)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.from)
	b = binary.BigEndian.AppendUint64(b, h.to)
	b = binary.BigEndian.AppendUint64(b, h.boot)
	b = binary.BigEndian.AppendUint64(b, h.age)
	b = append(b, byte(len(h.service)))
	b = append(b, h.service...)
	b = append(b, byte(len(h.address)))
	b = append(b, h.address...)
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
	const fixed = 16 + 8 + 8 + 8 + 8
	if len(b) < fixed {
		return h, errHello
	}
	copy(h.cluster[:], b)
	h.from = binary.BigEndian.Uint64(b[16:])
	h.to = binary.BigEndian.Uint64(b[24:])
	h.boot = binary.BigEndian.Uint64(b[32:])
	h.age = binary.BigEndian.Uint64(b[40:])
	var ok bool
	b = b[fixed:]
	if h.service, b, ok = cutString(b); !ok || h.service == "" || len(h.service) > maxService {
		return h, errHello
	}
	if h.address, b, ok = cutString(b); !ok || len(b) > 0 {
		return h, errHello
	}
	return h, nil
}

// cutString takes a string with its length in front off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	n := 1 + int(b[0])
	return string(b[1:n]), b[n:], true
}

func (a *answer) append(b []byte) []byte {
	text := a.text[:min(len(a.text), maxText)]
	b = binary.BigEndian.AppendUint32(b, uint32(1+8+8+len(text)))
	b = append(b, byte(a.verdict))
	b = binary.BigEndian.AppendUint64(b, a.boot)
	b = binary.BigEndian.AppendUint64(b, a.age)
	return append(b, text...)
}

func parseAnswer(b []byte) (answer, error) {
	if len(b) < 17 {
		return answer{}, errHello
	}
	return answer{verdict(b[0]), binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]), string(b[17:])}, nil
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
