package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/fixture"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// conversation is what two members say to each other for one purpose. Each may speak before the other has finished, so
// turns says in which order frames depend on each other: d3 s1 is three frames of who dials, then one of who serves.
type conversation struct {
	turns string
	dials func(ctx context.Context, s *Store) error // what makes the dialling side speak
	after func(t *testing.T, dials, serves *Store)  // what must be so afterwards
	holds [][]byte                                  // what the serving side has before
}

var fixtureSmall = [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("lockstep "), 30)}

// fixtureLarge is one chunk of nearly nothing but zeros, which a fixture writes as such.
func fixtureLarge() []byte {
	b := make([]byte, SmallMax+1000)
	copy(b[70_000:], "in the middle")
	copy(b[len(b)-7:], "the end")
	return b
}

func wantOf(b []byte, hint string) Want {
	return Want{Hash: blake3.Sum256(b), Size: int64(len(b)), PathHint: hint}
}

func itemOf(b []byte, path string) Item {
	it := Item{Hash: blake3.Sum256(b), Size: int64(len(b)), PathHint: path}
	if len(b) <= SmallMax {
		it.Bytes = b
		return it
	}
	it.Open = func() (Source, error) { return memorySource{bytes.NewReader(b)}, nil }
	return it
}

func conversations() map[string]conversation {
	large := fixtureLarge()
	push := func(items ...Item) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error { return s.Pusher(2).Push(ctx, items) }
	}
	fetch := func(wants ...Want) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error {
			missing, err := s.Fetch(ctx, []uint64{2}, wants)
			if err == nil && len(missing) > 0 {
				err = fmt.Errorf("%d are missing", len(missing))
			}
			return err
		}
	}
	var items []Item
	var wants []Want
	for _, b := range fixtureSmall {
		items = append(items, itemOf(b, ""))
		wants = append(wants, wantOf(b, "a/b"))
	}
	changed := itemOf([]byte("changed"), "")
	changed.Hash = manifest.Hash{1, 2, 3}
	return map[string]conversation{
		"push small": {turns: "d2 s1", dials: push(items...), after: holdAll(1, fixtureSmall...)},
		"push small, changed": {turns: "d2 s2", dials: func(ctx context.Context, s *Store) error {
			var failed *PushError
			if err := push(items[0], changed)(ctx, s); !errors.As(err, &failed) || len(failed.Failed) != 1 || !errors.Is(failed.Failed[1], ErrChanged) {
				return fmt.Errorf("pushed what is not what it is said to be: %w", err)
			}
			return nil
		}, after: holdAll(1, fixtureSmall[0])},
		"push large":  {turns: "d2 s1 d1 s1 d2 s2", dials: push(itemOf(large, "dir/large")), after: holdAll(1, large)},
		"fetch small": {turns: "d2 s2", dials: fetch(wants...), holds: fixtureSmall, after: holdAll(0, fixtureSmall...)},
		"fetch large": {turns: "d2 s1 d1 s2 d1", dials: fetch(wantOf(large, "dir/large")), holds: [][]byte{large}, after: holdAll(0, large)},
		"fetch what is not there": {turns: "d2 s1", dials: func(ctx context.Context, s *Store) error {
			if missing, err := s.Fetch(ctx, []uint64{2}, []Want{wantOf(large, "")}); err != nil || len(missing) != 1 {
				return fmt.Errorf("%d missing, %w", len(missing), err)
			}
			return nil
		}},
	}
}

// holdAll says that one side, the dialling (0) or the serving (1) one, holds contents afterwards.
func holdAll(side int, contents ...[]byte) func(*testing.T, *Store, *Store) {
	return func(t *testing.T, dials, serves *Store) {
		s := []*Store{dials, serves}[side]
		if s == nil {
			return
		}
		for _, want := range contents {
			r, ok, err := s.Open(blake3.Sum256(want), int64(len(want)))
			if err != nil || !ok {
				t.Errorf("content of %d bytes: %v, %v", len(want), ok, err)
				continue
			}
			got, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("content of %d bytes came back as %d bytes, %v", len(want), len(got), err)
			}
		}
	}
}

func fixtureStore(t *testing.T, holds [][]byte, dial func() (net.Conn, error)) *Store {
	t.Helper()
	s, err := Open(Options{
		Dir: t.TempDir(), Now: time.Now, Stall: time.Minute, Chunks: kv.NewMemory(), // nobody is silent for long enough to be pinged
		Dial: func(context.Context, uint64) (net.Conn, error) { return dial() },
		Free: func(string) (uint64, error) { return 1 << 50, nil },
		Local: func(h manifest.Hash, _ string) (Source, bool) {
			for _, b := range holds {
				if blake3.Sum256(b) == h {
					return memorySource{bytes.NewReader(b)}, true
				}
			}
			return nil, false
		},
		OpenPath: func(string) (Source, bool) { return nil, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// heard keeps what one side of a connection writes.
type heard struct {
	net.Conn
	mu   sync.Mutex
	said bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	h.said.Write(p)
	h.mu.Unlock()
	return h.Conn.Write(p)
}

// frames cuts what was said.
func frames(t *testing.T, said []byte) (all [][]byte) {
	t.Helper()
	for len(said) > 0 {
		if len(said) < frameHead {
			t.Fatalf("%d bytes at the end", len(said))
		}
		_, n, err := parseHead(said)
		if err != nil || len(said) < frameHead+n {
			t.Fatalf("frame of %d bytes where %d are, %v", n, len(said), err)
		}
		all, said = append(all, said[:frameHead+n]), said[frameHead+n:]
	}
	return all
}

// hold runs a conversation between two sides of this version and returns what each says.
func (c conversation) hold(t *testing.T) (dials, serves []byte) {
	t.Helper()
	near, far, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	d, s := &heard{Conn: near}, &heard{Conn: far}
	serving := fixtureStore(t, c.holds, nil)
	ended := make(chan error, 1)
	go func() { ended <- serving.Serve(t.Context(), s) }()
	dialling := fixtureStore(t, nil, func() (net.Conn, error) { return d, nil })
	if err := c.dials(t.Context(), dialling); err != nil {
		t.Fatal(err)
	}
	if err := dialling.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	return d.said.Bytes(), s.said.Bytes()
}

// play is one side of a conversation from what was said, against a real other side, which must say what it said then.
func (c conversation) play(t *testing.T, conn net.Conn, side byte, own, others []byte) {
	t.Helper()
	mine, theirs := frames(t, own), frames(t, others)
	for _, turn := range strings.Fields(c.turns) {
		for range turn[1] - '0' {
			if turn[0] == side {
				if _, err := conn.Write(mine[0]); err != nil {
					t.Fatal(err)
				}
				mine = mine[1:]
				continue
			}
			said := make([]byte, len(theirs[0]))
			if _, err := io.ReadFull(conn, said); err != nil || !bytes.Equal(said, theirs[0]) {
				t.Fatalf("said was %.100x, then it was %.100x, %v", said, theirs[0], err)
			}
			theirs = theirs[1:]
		}
	}
	if len(mine)+len(theirs) > 0 {
		t.Errorf("%d and %d frames are left", len(mine), len(theirs))
	}
}

// TestFixture has both sides of every kind of conversation speak with what the other said in version 1.
func TestFixture(t *testing.T) {
	made := map[string][]byte{}
	for name, c := range conversations() {
		made[name+": dials"], made[name+": serves"] = c.hold(t)
	}
	held := fixture.Check(t, "frames-1.hex", made)
	for name, c := range conversations() {
		t.Run(name, func(t *testing.T) {
			dials, serves := held[name+": dials"], held[name+": serves"]
			near, far := net.Pipe()
			serving := fixtureStore(t, c.holds, nil)
			ended := make(chan error, 1)
			go func() { ended <- serving.Serve(t.Context(), far) }()
			c.play(t, near, 'd', dials, serves)
			if err := near.Close(); err != nil {
				t.Fatal(err)
			}
			<-ended
			near, far = net.Pipe()
			dialling := fixtureStore(t, nil, func() (net.Conn, error) { return near, nil })
			go func() { ended <- c.dials(t.Context(), dialling) }()
			c.play(t, far, 's', serves, dials)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if c.after != nil {
				c.after(t, dialling, serving)
			}
		})
	}
}

// FuzzAnswers plays a member that answers anything to a push and to a fetch: both end, and nothing wrong is staged.
func FuzzAnswers(f *testing.F) {
	f.Add(finishFrame(beginFrame(nil, kindAck, 1)))
	f.Add(finishFrame(appendRefusal(beginFrame(nil, kindRefuse, 1), codeChanged, []uint32{0, 9})))
	f.Add(finishFrame(append(beginFrame(nil, kindResult, 1), byte(codeGo))))
	f.Add(finishFrame(appendRecipe(beginFrame(nil, kindRecipe, 1), chunk.Recipe{{Hash: manifest.Hash{1}, Len: SmallMax + 1000}})))
	f.Add(finishFrame(append(beginFrame(nil, kindWant, 1), 1)))
	f.Add(append(finishFrame(beginFrame(nil, kindFound, 1)), finishFrame(beginFrame(nil, kindGot, 1))...))
	f.Add(finishFrame(append(beginFrame(nil, kindChunk, 2), make([]byte, 100)...)))
	large := fixtureLarge()
	f.Fuzz(func(t *testing.T, said []byte) {
		s, err := Open(Options{Dir: t.TempDir(), Now: time.Now, Stall: 50 * time.Millisecond, Chunks: kv.NewMemory(), Free: func(string) (uint64, error) { return 1 << 40, nil },
			Dial: func(context.Context, uint64) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					defer far.Close()
					go io.Copy(io.Discard, far) // ends with the pipe
					_, _ = far.Write(said)      // fails if the dialling side has heard enough
				}()
				return near, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Pusher(2).Push(t.Context(), []Item{itemOf(fixtureSmall[0], ""), itemOf(large, "")})
		missing, _ := s.Fetch(t.Context(), []uint64{2}, []Want{wantOf(fixtureSmall[2], ""), wantOf(large, "")})
		for _, b := range [][]byte{fixtureSmall[2], large} {
			w := wantOf(b, "")
			if s.Has(w.Hash) && slices.Contains(missing, w) {
				t.Error("staged and missing")
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
