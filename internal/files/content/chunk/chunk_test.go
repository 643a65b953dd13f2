package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/zeebo/blake3"
)

func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, n)
	rand.NewChaCha8(key).Read(data)
	return data
}

func recipe(t testing.TB, src io.Reader) Recipe {
	t.Helper()
	r, err := NewSplitter(src).Segment(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCutPointsNeverChange(t *testing.T) {
	var lens []uint32
	for _, c := range recipe(t, bytes.NewReader(random(1, 4<<20))) {
		lens = append(lens, c.Len)
	}
	const want = "[737391 301471 275097 331369 280650 283285 264683 514592 299848 312112 140746 278248 174812]"
	if got := fmt.Sprint(lens); got != want {
		t.Errorf("cut points moved, which breaks what members remember and exchange:\n got %s\nwant %s", got, want)
	}
	if gear[0] != 0x8c91077d160911d || gear[255] != 0x8508f70b80f0b460 {
		t.Errorf("gear table changed: %#x … %#x", gear[0], gear[255])
	}
}

func TestSizes(t *testing.T) {
	const total = 64 << 20
	r := recipe(t, bytes.NewReader(random(2, total)))
	for i, c := range r {
		if c.Len > Max || c.Len < Min && i != len(r)-1 {
			t.Fatalf("chunk %d of %d has %d bytes", i, len(r), c.Len)
		}
	}
	if mean := total / len(r); mean < Avg*3/4 || mean > Avg*3/2 {
		t.Errorf("mean chunk is %d bytes, wanted about %d", mean, Avg)
	}
	if r.Size() != total {
		t.Errorf("recipe covers %d of %d bytes", r.Size(), total)
	}
	for i, c := range recipe(t, bytes.NewReader(make([]byte, 5<<20+1))) {
		if want := map[bool]uint32{true: 1, false: Max}[i == 5]; c.Len != want {
			t.Errorf("zeroes: chunk %d has %d bytes, want %d", i, c.Len, want)
		}
	}
}

func TestOneInsertedByteChangesFewChunks(t *testing.T) {
	old := random(3, 16<<20)
	have := map[Ref]bool{}
	for _, c := range recipe(t, bytes.NewReader(old)) {
		have[c] = true
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for range 4 {
		at := rng.IntN(len(old))
		edited := append(append(bytes.Clone(old[:at]), 'x'), old[at:]...)
		changed := 0
		for _, c := range recipe(t, bytes.NewReader(edited)) {
			if !have[c] {
				changed++
			}
		}
		if changed < 1 || changed > 6 {
			t.Errorf("a byte inserted at %d changed %d of %d chunks", at, changed, len(have))
		}
	}
}

func TestReadErrorIsNotAnEnd(t *testing.T) {
	broken := errors.New("broken")
	src := io.MultiReader(bytes.NewReader(random(4, 3<<20)), iotest.ErrReader(broken))
	if _, err := NewSplitter(src).Segment(1 << 10); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(uint64(5), 3<<20, uint16(4096), []byte("abc"))
	f.Add(uint64(6), 0, uint16(1), []byte{})
	f.Add(uint64(7), Max+1, uint16(60000), []byte{0})
	f.Fuzz(func(t *testing.T, seed uint64, n int, step uint16, tail []byte) {
		data := append(random(seed, min(max(n, 0), 8<<20)), tail...)
		s := NewSplitter(&stepped{data: data, step: int(step) + 1})
		var joined []byte
		for rest := data; ; {
			c, err := s.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := Cut(rest); want != len(c) {
				t.Fatalf("splitter cut %d bytes, Cut says %d", len(c), want)
			}
			rest = rest[len(c):]
			joined = append(joined, c...)
		}
		if !bytes.Equal(joined, data) {
			t.Fatalf("the chunks do not make up the content (seed %d, %d bytes)", seed, len(data))
		}
	})
}

type stepped struct {
	data []byte
	step int
}

func (r *stepped) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.step)], r.data)
	r.data = r.data[n:]
	return n, nil
}

func BenchmarkCut(b *testing.B) {
	data := random(8, 32<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			rest = rest[Cut(rest):]
		}
	}
}

func BenchmarkCutAndHash(b *testing.B) {
	data := random(9, 32<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			n := Cut(rest)
			blake3.Sum256(rest[:n])
			rest = rest[n:]
		}
	}
}
