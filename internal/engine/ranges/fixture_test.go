package ranges_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/ranges"
	"github.com/lockstep-sync/lockstep/internal/fixture"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestFixture has both sides of a difference of ranges speak with what the other said in version 1: of three ranges of the
// learner one is the same, one differs and one is gone, and behind them there is more.
func TestFixture(t *testing.T) {
	src, dst := kv.NewMemory(), kv.NewMemory()
	whole := string(make([]byte, 256<<10)) // a range by itself
	for _, s := range []kv.Store{src, dst} {
		fill(t, s, func(put func(k, v string)) { put("a", whole); put("b/1", "one"); put("", "the empty key") })
	}
	fill(t, src, func(put func(k, v string)) { put("b/2", "two"); put("z\xff", "behind") })
	fill(t, dst, func(put func(k, v string)) { put("b/2", "2"); put("b/3", whole); put("c", "gone") })

	x, y := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ranges.Serve(src, y) }()
	var asked, answered bytes.Buffer
	err := ranges.Fetch(dst, script{io.TeeReader(x, &answered), io.MultiWriter(x, &asked)}, direct{kv.NewMemory()})
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	held := fixture.Check(t, "difference-1.hex", map[string][]byte{"learner": asked.Bytes(), "source": answered.Bytes()})

	if err := ranges.Fetch(dst, script{bytes.NewReader(held["source"]), io.Discard}, direct{dst}); err != nil {
		t.Fatal(err)
	}
	same(t, src, dst)
	var said bytes.Buffer
	if err := ranges.Serve(src, script{bytes.NewReader(held["learner"]), &said}); err != nil || !bytes.Equal(said.Bytes(), held["source"]) {
		t.Errorf("the source answers %x, %v", said.Bytes(), err)
	}
}
