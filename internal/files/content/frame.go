package content

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// A frame is: length of the body u32 | kind u8 | body, little endian. See DESIGN.md for who sends what when.
type kind uint8

const (
	kindPing     kind = iota + 1 // nothing: I am alive
	kindHello                    // magic u32, version u16; first frame of who dialled
	kindSmall                    // number u64, records: stage these
	kindAck                      // number u64: all small frames up to it are durable, except what was refused
	kindRefuse                   // number u64, code u8, indices u32…: these records of it (none: all)
	kindOffer                    // id u64, want: I will send this large content
	kindRecipe                   // id u64, (hash, length u32)…: its next segment
	kindWant                     // id u64, bitmap: send these chunks of the segment
	kindChunk                    // id u64, offset u64, bytes
	kindCredit                   // id u64: one more chunk may be sent
	kindEnd                      // id u64: that was the last segment
	kindResult                   // id u64, code u8, room…: the transfer is over, or may begin (codeGo)
	kindGetSmall                 // number u64, want…
	kindGetLarge                 // id u64, want: send me this large content
	kindFound                    // number u64, records: some that were wanted
	kindGot                      // number u64: that was all I have of this request
	kindLimit                    // one past the last
)

type code uint8

const (
	codeOK      code = iota // it is there, durable
	codeGo                  // send the recipe
	codeChanged             // the bytes do not match the hash
	codeFull                // no space to stage it
	codeMissing             // not here
	codeFailed              // anything else: the node's own log says what
)

const (
	frameHead  = 5
	numberSize = 8
	recordsMax = 1 << 20 // of records in one frame
	chunkHead  = frameHead + numberSize + 8
	frameSpace = chunkHead + chunk.Max
	refSize    = 36
	wantsMax   = 256 << 10
	hintMax    = 4096 // longest path
	helloMagic = 0x4c534354
	version    = 1
)

// bodyMax is the longest body of each kind; a longer one ends the connection before anything is allocated.
func bodyMax(k kind) int {
	switch k {
	case kindPing:
		return 0
	case kindHello:
		return 6
	case kindSmall, kindFound:
		return numberSize + recordsMax
	case kindChunk:
		return numberSize + 8 + chunk.Max
	case kindRecipe:
		return numberSize + segmentRefs*refSize
	case kindGetSmall:
		return numberSize + wantsMax
	case kindRefuse:
		return numberSize + 1 + 4*(recordsMax/pack.HeaderSize+1)
	case kindOffer, kindGetLarge:
		return numberSize + wantSize("") + hintMax
	case kindWant:
		return numberSize + segmentRefs/8
	case kindAck, kindCredit, kindEnd, kindGot:
		return numberSize
	case kindResult:
		return numberSize + resultMax
	}
	return -1
}

// beginFrame appends a frame's head and number; finishFrame fills in the length.
func beginFrame(dst []byte, k kind, number uint64) []byte {
	dst = append(dst, 0, 0, 0, 0, byte(k))
	return binary.LittleEndian.AppendUint64(dst, number)
}

func finishFrame(frame []byte) []byte {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHead))
	return frame
}

func setNumber(frame []byte, number uint64) {
	binary.LittleEndian.PutUint64(frame[frameHead:], number)
}

func parseHead(head []byte) (k kind, n int, err error) {
	n, k = int(binary.LittleEndian.Uint32(head)), kind(head[4])
	if k == 0 || k >= kindLimit || n > bodyMax(k) || k != kindPing && n < numberSize && k != kindHello {
		return 0, 0, fmt.Errorf("%w: frame kind %d of %d bytes", errProtocol, k, n)
	}
	return k, n, nil
}

func helloFrame() []byte {
	frame := []byte{0, 0, 0, 0, byte(kindHello)}
	frame = binary.LittleEndian.AppendUint32(frame, helloMagic)
	return finishFrame(binary.LittleEndian.AppendUint16(frame, version))
}

func checkHello(k kind, body []byte) error {
	if k != kindHello || len(body) != 6 || binary.LittleEndian.Uint32(body) != helloMagic {
		return fmt.Errorf("%w: not a content stream", errProtocol)
	}
	if v := binary.LittleEndian.Uint16(body[4:]); v != version {
		return fmt.Errorf("%w: content stream version %d, this node speaks %d", errProtocol, v, version)
	}
	return nil
}

func wantSize(hint string) int { return len(manifest.Hash{}) + 8 + 2 + len(hint) }

// appendWant appends: hash, size u64, length of the hint u16, hint.
func appendWant(dst []byte, w Want) []byte {
	dst = append(dst, w.Hash[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(w.Size))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(w.PathHint)))
	return append(dst, w.PathHint...)
}

func parseWant(body []byte) (w Want, rest []byte, err error) {
	if len(body) < wantSize("") {
		return w, nil, fmt.Errorf("%w: want of %d bytes", errProtocol, len(body))
	}
	copy(w.Hash[:], body)
	w.Size = int64(binary.LittleEndian.Uint64(body[32:]))
	n := int(binary.LittleEndian.Uint16(body[40:]))
	body = body[42:]
	if w.Size < 0 || n > hintMax || n > len(body) {
		return w, nil, fmt.Errorf("%w: want of size %d with a hint of %d bytes", errProtocol, w.Size, n)
	}
	w.PathHint = string(body[:n])
	return w, body[n:], nil
}

// parseLarge reads the want of an offer or a request for a large content.
func parseLarge(body []byte) (Want, error) {
	w, rest, err := parseWant(body)
	if err == nil && (len(rest) > 0 || w.Size <= SmallMax) {
		err = fmt.Errorf("%w: large content of %d bytes", errProtocol, w.Size)
	}
	return w, err
}

func appendRecipe(dst []byte, seg chunk.Recipe) []byte {
	for _, c := range seg {
		dst = append(dst, c.Hash[:]...)
		dst = binary.LittleEndian.AppendUint32(dst, c.Len)
	}
	return dst
}

func parseRecipe(body []byte) (chunk.Recipe, error) {
	if len(body)%refSize != 0 {
		return nil, fmt.Errorf("%w: recipe of %d bytes", errProtocol, len(body))
	}
	seg := make(chunk.Recipe, len(body)/refSize)
	for i := range seg {
		c := body[i*refSize:]
		seg[i] = chunk.Ref{Hash: manifest.Hash(c[:32]), Len: binary.LittleEndian.Uint32(c[32:])}
	}
	return seg, nil
}

// appendRefusal appends the refused records' indices; none mean all.
func appendRefusal(dst []byte, c code, indices []uint32) []byte {
	dst = append(dst, byte(c))
	for _, i := range indices {
		dst = binary.LittleEndian.AppendUint32(dst, i)
	}
	return dst
}

func parseRefusal(body []byte) (code, []uint32, error) {
	if len(body)%4 != 1 {
		return 0, nil, fmt.Errorf("%w: refusal of %d bytes", errProtocol, len(body))
	}
	indices := make([]uint32, 0, len(body)/4)
	for rest := body[1:]; len(rest) > 0; rest = rest[4:] {
		indices = append(indices, binary.LittleEndian.Uint32(rest))
	}
	return code(body[0]), indices, nil
}
