package content

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// memory is a content held in memory, as a Source.
type memory struct{ data []byte }

func (m memory) open() Source { return memorySource{bytes.NewReader(m.data)} }

type memorySource struct{ *bytes.Reader }

func (memorySource) Close() error { return nil }

// verifier passes a content on and checks it against its hash before it lets go of the last bytes.
type verifier struct {
	src    Source
	hash   manifest.Hash
	left   int64
	hasher *blake3.Hasher
	err    error
}

func newVerifier(src Source, h manifest.Hash, size int64) io.ReadCloser {
	v := &verifier{src: src, hash: h, left: size, hasher: blake3.New()}
	if size == 0 {
		v.err = v.end()
	}
	return v
}

func (v *verifier) Close() error { return v.src.Close() }

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.src.Read(p[:min(int64(len(p)), v.left)])
	_, _ = v.hasher.Write(p[:n]) // documented never to fail
	v.left -= int64(n)
	switch {
	case v.left == 0 && n > 0:
		if v.err = v.end(); v.err != io.EOF {
			return 0, v.err
		}
		return n, nil
	case err == io.EOF:
		v.err = fmt.Errorf("read %x: %d bytes short: %w", v.hash[:4], v.left, ErrDamaged)
		return 0, v.err
	case err != nil:
		v.err = fmt.Errorf("read %x: %w", v.hash[:4], err)
	}
	return n, v.err
}

// end is io.EOF if what was read is the content and nothing follows it.
func (v *verifier) end() error {
	var sum manifest.Hash
	v.hasher.Sum(sum[:0])
	if sum != v.hash {
		return fmt.Errorf("read %x: %w", v.hash[:4], ErrDamaged)
	}
	var more [1]byte
	n, err := v.src.Read(more[:])
	if n > 0 {
		return fmt.Errorf("read %x: longer than expected: %w", v.hash[:4], ErrDamaged)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %x: %w", v.hash[:4], err)
	}
	return io.EOF
}
