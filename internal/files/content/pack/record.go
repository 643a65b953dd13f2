package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// A record is a header and the content:
//
//	length u32 | hash 32 B | CRC-32C of the content u32 | CRC-32C of the 40 bytes before u32 | content
//
// all little endian. It is the same on the wire and on disk, so that a received frame is appended as it came;
// the checksums are zero on the wire and filled in by Append.
const (
	HeaderSize = 44
	MaxContent = 128 << 10 // longest content of a record
)

// ErrMalformed is wrapped by every error about bytes that are not records.
var ErrMalformed = errors.New("malformed record")

// PutHeader writes the header of a content of n bytes, without checksums, into dst[:HeaderSize].
func PutHeader(dst []byte, h manifest.Hash, n int) {
	binary.LittleEndian.PutUint32(dst, uint32(n))
	copy(dst[4:36], h[:])
	clear(dst[36:HeaderSize])
}

// Record splits the first record off buf: its hash, its content and what follows it. The content is a part of
// buf and is not checked against the hash.
func Record(buf []byte) (h manifest.Hash, content, rest []byte, err error) {
	if len(buf) < HeaderSize {
		return h, nil, nil, fmt.Errorf("%w: %d bytes left", ErrMalformed, len(buf))
	}
	n := int64(binary.LittleEndian.Uint32(buf))
	if n > MaxContent || n > int64(len(buf)-HeaderSize) {
		return h, nil, nil, fmt.Errorf("%w: length %d with %d bytes left", ErrMalformed, n, len(buf)-HeaderSize)
	}
	copy(h[:], buf[4:36])
	end := HeaderSize + int(n)
	return h, buf[HeaderSize:end:end], buf[end:], nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // read only

func seal(record []byte) {
	binary.LittleEndian.PutUint32(record[36:], crc32.Checksum(record[HeaderSize:], castagnoli))
	binary.LittleEndian.PutUint32(record[40:], crc32.Checksum(record[:40], castagnoli))
}

// headerLen is the content's length if the header is whole.
func headerLen(header []byte) (int, bool) {
	n := binary.LittleEndian.Uint32(header)
	ok := n <= MaxContent && crc32.Checksum(header[:40], castagnoli) == binary.LittleEndian.Uint32(header[40:])
	return int(n), ok
}

func contentWhole(header, content []byte) bool {
	return crc32.Checksum(content, castagnoli) == binary.LittleEndian.Uint32(header[36:])
}
