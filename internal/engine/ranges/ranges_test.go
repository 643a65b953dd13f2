package ranges_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/ranges"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// counted counts what is read from a stream, and breaks it after a limit.
type counted struct {
	net.Conn
	n, limit int
}

func (c *counted) Read(p []byte) (int, error) {
	if c.limit > 0 && c.n >= c.limit {
		c.Conn.Close()
		return 0, errors.New("broken")
	}
	n, err := c.Conn.Read(p)
	c.n += n
	return n, err
}

// direct writes to a store at once, each write a batch of its own.
type direct struct{ store kv.Store }

func (d direct) do(f func(kv.Batch) error) error {
	b := d.store.Batch()
	if err := f(b); err != nil {
		return err
	}
	return b.Commit()
}

func (d direct) Set(k, v []byte) error { return d.do(func(b kv.Batch) error { return b.Set(k, v) }) }
func (d direct) DeleteRange(from, to []byte) error {
	return d.do(func(b kv.Batch) error { return b.DeleteRange(from, to) })
}

// fetch makes dst equal to src and returns how many bytes came; limit breaks the stream after so many.
func fetch(t *testing.T, dst, src kv.Store, limit int) (int, error) {
	t.Helper()
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { defer b.Close(); served <- ranges.Serve(src, b) }()
	c := &counted{Conn: a, limit: limit}
	err := ranges.Fetch(dst, c, direct{dst})
	a.Close()
	if serr := <-served; err == nil && serr != nil {
		t.Fatal(serr)
	}
	return c.n, err
}

func fill(t *testing.T, s kv.Store, f func(put func(k, v string))) {
	t.Helper()
	b := s.Batch()
	f(func(k, v string) {
		if err := b.Set([]byte(k), []byte(v)); err != nil {
			t.Fatal(err)
		}
	})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, a, b kv.Store) {
	t.Helper()
	dump := func(s kv.Store) (out bytes.Buffer) {
		if err := s.Scan(nil, nil, func(k, v []byte) error { fmt.Fprintf(&out, "%q=%q\n", k, v); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	x, y := dump(a), dump(b)
	if !bytes.Equal(x.Bytes(), y.Bytes()) {
		t.Fatalf("the states differ: %d and %d bytes", x.Len(), y.Len())
	}
}

func big(n int) string { return string(bytes.Repeat([]byte{byte('a' + n%26)}, 16<<10)) }

// TestFetchMovesWhatDiffers: a whole state once, nothing when nothing differs, about a range where something does.
func TestFetchMovesWhatDiffers(t *testing.T) {
	src, dst := kv.NewMemory(), kv.NewMemory()
	fill(t, src, func(put func(k, v string)) {
		for i := range 1000 {
			put(fmt.Sprintf("k%05d", i), big(i))
		}
	})
	whole, err := fetch(t, dst, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	same(t, src, dst)
	none, err := fetch(t, dst, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, src, func(put func(k, v string)) { put("k00500", "other"); put("k00500x", "new") })
	one, err := fetch(t, dst, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	same(t, src, dst)
	t.Logf("whole %d, none %d, one %d bytes", whole, none, one)
	if whole < 16_000_000 || none > 1000 || one > 600<<10 {
		t.Errorf("whole %d, none %d, one %d bytes", whole, none, one)
	}
}

// TestFetchContinues: a transfer that breaks goes on where it was, even from a source that has moved on.
func TestFetchContinues(t *testing.T) {
	src, dst := kv.NewMemory(), kv.NewMemory()
	fill(t, src, func(put func(k, v string)) {
		for i := range 500 {
			put(fmt.Sprintf("k%05d", i), big(i))
		}
	})
	total, breaks := 0, 0
	for step := 0; ; step++ {
		n, err := fetch(t, dst, src, 2<<20)
		total += n
		if err == nil {
			break
		}
		breaks++
		fill(t, src, func(put func(k, v string)) { put(fmt.Sprintf("k%05d", step), "moved on") })
		if step > 20 {
			t.Fatal("no progress")
		}
	}
	same(t, src, dst)
	if breaks < 3 || total > 14<<20 {
		t.Errorf("%d bytes came in %d pieces; the state has 8 MiB", total, breaks+1)
	}
}

// TestFetchRandom: any two states, with empty and long keys.
func TestFetchRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for range 60 {
		src, dst := kv.NewMemory(), kv.NewMemory()
		key := func() string {
			return string(bytes.Repeat([]byte{byte(rng.IntN(4))}, rng.IntN(6))) + fmt.Sprint(rng.IntN(200))
		}
		for _, s := range []kv.Store{src, dst} {
			fill(t, s, func(put func(k, v string)) {
				for range rng.IntN(300) {
					put(key(), string(make([]byte, rng.IntN(20_000))))
				}
				if rng.IntN(2) == 0 {
					put("", "empty")
				}
			})
		}
		if _, err := fetch(t, dst, src, 0); err != nil {
			t.Fatal(err)
		}
		same(t, src, dst)
	}
}

type script struct {
	io.Reader
	io.Writer
}

// recorded is what a source sends to a learner that has something.
func recorded(t testing.TB) []byte {
	src, local := kv.NewMemory(), kv.NewMemory()
	b := src.Batch()
	c := local.Batch()
	for i := range 50 {
		if err := errors.Join(b.Set(fmt.Append(nil, "k", i), []byte("v")), c.Set(fmt.Append(nil, "k", i*2), []byte("v"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Commit(), c.Commit()); err != nil {
		t.Fatal(err)
	}
	x, y := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ranges.Serve(src, y) }()
	var sent bytes.Buffer
	err := ranges.Fetch(local, script{io.TeeReader(x, &sent), x}, direct{kv.NewMemory()})
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	return sent.Bytes()
}

// TestAlteredChunksAreRefused: every single bit of what a source sends is covered.
func TestAlteredChunksAreRefused(t *testing.T) {
	good := recorded(t)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		local := kv.NewMemory()
		fill(t, local, func(put func(k, v string)) {
			for i := range 50 {
				put(fmt.Sprint("k", i*2), "v")
			}
		})
		if err := ranges.Fetch(local, script{bytes.NewReader(bad), io.Discard}, direct{kv.NewMemory()}); err == nil {
			t.Errorf("byte %d of %d altered: taken", i, len(good))
		}
	}
}

func FuzzFetch(f *testing.F) {
	f.Add(recorded(f))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = ranges.Fetch(kv.NewMemory(), script{bytes.NewReader(b), io.Discard}, direct{kv.NewMemory()}) // must end and not panic
	})
}

func FuzzServe(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00R"))
	f.Add(append([]byte("\x00\x00\x00\x22H\x01k"), make([]byte, 32)...))
	src := kv.NewMemory()
	b := src.Batch()
	if err := errors.Join(b.Set([]byte("a"), []byte("1")), b.Set([]byte("z"), []byte("2")), b.Commit()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = ranges.Serve(src, script{bytes.NewReader(b), io.Discard}) // must end and not panic
	})
}
