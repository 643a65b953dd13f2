package content

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

func TestPushSmall(t *testing.T) {
	r := newRig(t, 2)
	items, _ := small(3000, 5000)
	items = append(items, Item{Hash: blake3.Sum256(nil)}, items[0]) // an empty one and a repeated one
	if err := r.members[1].Pusher(2).Push(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		got, ok := r.members[2].Small(it.Hash)
		if !ok || string(got) != string(it.Bytes) {
			t.Fatalf("content %x: found %v", it.Hash[:4], ok)
		}
	}
	if st := r.members[2].Stats(); st.Packs.Contents != 3001 || st.Packs.Unsynced != 0 {
		t.Errorf("%d contents staged, want 3001; %d appends not synced", st.Packs.Contents, st.Packs.Unsynced)
	}
}

func TestPushedSurvivesRestart(t *testing.T) {
	r := newRig(t, 2)
	items, _ := small(100, 5000)
	data := randomBytes(3 << 20)
	items = append(items, fileItem(writeFile(t, data), data))
	p := r.members[1].Pusher(2)
	if err := p.Push(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	r.restart(2)
	for _, it := range items[:100] {
		r.members[2].holds(it.Bytes)
	}
	r.members[2].holds(data)
	if err := p.Push(t.Context(), items); err != nil { // on a new connection, as the old one is dead
		t.Fatal(err)
	}
	if st := r.members[2].Stats(); st.Traffic.Received > 100*(5000+100)+1000 {
		t.Errorf("%d bytes came again", st.Traffic.Received)
	}
}

// restart stops all connections, reopens the node's store from its disk and goes on.
func (r *rig) restart(node uint64) {
	r.t.Helper()
	r.stop()
	r.serving.Wait()
	r.ctx, r.stop = context.WithCancel(context.Background())
	if err := r.members[node].Close(); err != nil {
		r.t.Fatal(err)
	}
	r.members[node].start()
}

func TestPushLarge(t *testing.T) {
	r := newRig(t, 2)
	for _, size := range []int{SmallMax + 1, chunk.Min, chunk.Max, 5 << 20, 80<<20 + 17} {
		data := randomBytes(size)
		if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		r.members[2].holds(data)
	}
}

func TestZeroesAndRepeatsMoveOnce(t *testing.T) {
	r := newRig(t, 2)
	part := randomBytes(4 << 20)
	data := append(append(append(make([]byte, 100<<20), part...), part...), make([]byte, 3<<20)...)
	if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
		t.Fatal(err)
	}
	r.members[2].holds(data)
	if n := r.members[2].Stats().Traffic.Received; n > 9<<20 {
		t.Errorf("%d bytes moved of a content that repeats itself", n)
	}
}

func TestChangedItemsFailAlone(t *testing.T) {
	r := newRig(t, 2)
	items, _ := small(50, 4000)
	big := randomBytes(2 << 20)
	changed := append([]byte("changed"), big[7:]...)
	grown := fileItem(writeFile(t, randomBytes(101)), randomBytes(100))
	shrunk := fileItem(writeFile(t, randomBytes(99)), randomBytes(100))
	other := fileItem(writeFile(t, randomBytes(100)), randomBytes(100))
	otherBig := fileItem(writeFile(t, changed), big)
	short := big[:chunk.Cut(big)+100] // its last chunk is shorter than any may be inside a content
	shortBig := fileItem(writeFile(t, short), big)
	gone := fileItem("/nonexistent", randomBytes(1<<20))
	bad := []Item{grown, shrunk, other, otherBig, shortBig, gone}
	err := r.members[1].Pusher(2).Push(t.Context(), append(bad, items...))
	var failed *PushError
	if !errors.As(err, &failed) || len(failed.Failed) != len(bad) {
		t.Fatalf("got %v, want %d failed items", err, len(bad))
	}
	for i := range bad {
		want := ErrChanged
		if i == 5 {
			want = os.ErrNotExist
		}
		if !errors.Is(failed.Failed[i], want) {
			t.Errorf("item %d: %v, want %v", i, failed.Failed[i], want)
		}
		if r.members[2].Has(bad[i].Hash) {
			t.Errorf("item %d is there with the wrong bytes", i)
		}
	}
	for _, it := range items {
		r.members[2].holds(it.Bytes)
	}
	// The member learns that a content has changed after the pusher; the part of the one whose file was gone from the
	// beginning may be kept.
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		parts, err := os.ReadDir(r.members[2].largeDir())
		if err != nil {
			t.Fatal(err)
		}
		if len(parts) <= 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d part files of changed contents are left", len(parts))
		}
	}
}

// TestMemberFails: what the member cannot store is said to be its fault, not that of the file.
func TestMemberFails(t *testing.T) {
	r := newRig(t, 2)
	if err := os.RemoveAll(r.members[2].largeDir()); err != nil {
		t.Fatal(err)
	}
	data := randomBytes(1 << 20)
	items, _ := small(3, 100)
	var failed *PushError
	err := r.members[1].Pusher(2).Push(t.Context(), append(items, fileItem(writeFile(t, data), data)))
	if !errors.As(err, &failed) || len(failed.Failed) != 1 || !errors.Is(failed.Failed[3], ErrMember) {
		t.Errorf("got %v, want ErrMember of the last item", err)
	}
	for c, want := range map[code]bool{codeOK: false, codeChanged: false, codeFull: false, codeFailed: true} {
		if errors.Is(resultError(c), ErrMember) != want {
			t.Errorf("code %d: %v", c, resultError(c))
		}
	}
}

func TestInterruptedPushResumes(t *testing.T) {
	r := newRig(t, 2)
	data := randomBytes(40 << 20)
	item := fileItem(writeFile(t, data), data)
	p := r.members[1].Pusher(2)
	r.cutAfter.Store(25 << 20)
	if err := p.Push(t.Context(), []Item{item}); err == nil {
		t.Fatal("the push survived a cut cable")
	}
	r.cutAfter.Store(0)
	r.restart(2)
	if err := p.Push(t.Context(), []Item{item}); err != nil {
		t.Fatal(err)
	}
	r.members[2].holds(data)
	if n := r.members[2].Stats().Traffic.Received; n > 22<<20 || n < 10<<20 {
		t.Errorf("after 25 of 40 MiB, %d bytes moved again", n)
	}
}

func TestOldVersionIsReused(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		r := newRig(t, 2)
		old := randomBytes(30 << 20)
		data := append(append(append([]byte{}, old[:9<<20]...), "inserted"...), old[9<<20:]...)
		m := r.members[2]
		item := fileItem(writeFile(t, data), data)
		item.PathHint = "f"
		if recorded { // under another name, so that only the table can know
			m.place("g", old)
			refs, err := chunk.NewSplitter(memory{old}.open()).Segment(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.RecordPlaced("g", blake3.Sum256(old), refs); err != nil {
				t.Fatal(err)
			}
		} else {
			m.place("f", old)
		}
		if err := r.members[1].Pusher(2).Push(t.Context(), []Item{item}); err != nil {
			t.Fatal(err)
		}
		m.holds(data)
		if n := m.Stats().Traffic.Received; n > 4<<20 {
			t.Errorf("recorded %v: one insertion moved %d bytes", recorded, n)
		}
	}
}

func TestStaleChunkHintsAreDropped(t *testing.T) {
	r := newRig(t, 2)
	data := randomBytes(4 << 20)
	m := r.members[2]
	refs, err := chunk.NewSplitter(memory{data}.open()).Segment(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.RecordPlaced("f", blake3.Sum256(data), refs); err != nil {
		t.Fatal(err)
	}
	m.place("f", randomBytes(4<<20)) // was rewritten since
	if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
		t.Fatal(err)
	}
	m.holds(data)
	for _, c := range refs {
		if _, ok := m.table.find(c.Hash); ok {
			t.Error("a stale hint was kept")
		}
	}
}

func TestForgetPlaced(t *testing.T) {
	m := newRig(t, 1).members[1]
	refs := chunk.Recipe{{Hash: manifest.Hash{1}, Len: 100 << 10}, {Hash: manifest.Hash{2}, Len: 200 << 10}}
	if err := m.RecordPlaced("a", manifest.Hash{9}, refs); err != nil {
		t.Fatal(err)
	}
	if err := m.RecordPlaced("b", manifest.Hash{8}, refs[1:]); err != nil {
		t.Fatal(err)
	}
	if err := m.ForgetPlaced("a"); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.table.find(refs[0].Hash); ok {
		t.Error("a chunk of the forgotten file is still noted")
	}
	if at, ok := m.table.find(refs[1].Hash); !ok || at.path != "b" || at.offset != 0 {
		t.Errorf("the other file's chunk is noted as %+v, %v", at, ok)
	}
}

func TestNoSpace(t *testing.T) {
	r := newRig(t, 2)
	r.members[2].free.Store(100 << 10)
	items, _ := small(10, 2000)
	many, _ := small(300, 5000)
	big := randomBytes(1 << 20)
	p := r.members[1].Pusher(2)
	var failed *PushError
	err := p.Push(t.Context(), append(many, fileItem(writeFile(t, big), big)))
	if !errors.As(err, &failed) || !errors.Is(failed.Failed[300], ErrNoSpace) || !errors.Is(failed.Failed[0], ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if err := p.Push(t.Context(), items); err != nil {
		t.Errorf("what fits: %v", err)
	}
	if _, err := r.members[2].Fetch(t.Context(), []uint64{1}, nil); err != nil {
		t.Error(err)
	}
}

func TestFetch(t *testing.T) {
	r := newRig(t, 3)
	items, wants := small(5000, 3000)
	// One third staged on 2, one third placed on 2, one third only on 3.
	for i, it := range items {
		switch m := r.members[2]; i % 3 {
		case 2:
			m = r.members[3]
			fallthrough
		case 0:
			if err := m.Put(it.Hash, it.Bytes); err != nil {
				t.Fatal(err)
			}
		case 1:
			m.place(string(rune('a'+i%26))+string(rune('0'+i%10))+wants[i].PathHint+hexName(it.Hash), it.Bytes)
		}
	}
	big := randomBytes(20 << 20)
	r.members[3].place("big", big)
	nowhere := Want{Hash: manifest.Hash{1}, Size: 10}
	nowhereBig := Want{Hash: manifest.Hash{2}, Size: 10 << 20}
	wants = append(wants, Want{Hash: blake3.Sum256(big), Size: int64(len(big))}, nowhere, nowhereBig)
	missing, err := r.members[1].Fetch(t.Context(), []uint64{2, 3}, wants)
	if err != nil || len(missing) != 2 || missing[0] != nowhere || missing[1] != nowhereBig {
		t.Fatalf("missing %d, err %v", len(missing), err)
	}
	for _, it := range items {
		r.members[1].holds(it.Bytes)
	}
	r.members[1].holds(big)
}

func hexName(h manifest.Hash) string {
	const digits = "0123456789abcdef"
	var b []byte
	for _, x := range h[:8] {
		b = append(b, digits[x>>4], digits[x&15])
	}
	return string(b)
}

func TestFetchGoesOnWithTheNextNode(t *testing.T) {
	r := newRig(t, 3)
	data := randomBytes(30 << 20)
	items, wants := small(1000, 5000)
	for _, m := range []*member{r.members[2], r.members[3]} {
		m.place("big", data)
		for _, it := range items {
			if err := m.Put(it.Hash, it.Bytes); err != nil {
				t.Fatal(err)
			}
		}
	}
	wants = append(wants, Want{Hash: blake3.Sum256(data), Size: int64(len(data))})
	r.cutAfter.Store(20 << 20) // node 2 fails in between; then node 3 has enough for the rest, but not for all
	missing, err := r.members[1].Fetch(t.Context(), []uint64{2, 3}, wants)
	if len(missing) > 0 {
		t.Fatalf("%d missing: %v", len(missing), err)
	}
	r.members[1].holds(data)
	if n := r.members[1].Stats().Traffic.Received; n > 38<<20 {
		t.Errorf("%d bytes moved for 35 MB of contents", n)
	}
}

func TestFetchNeverTakesWrongBytes(t *testing.T) {
	r := newRig(t, 2)
	right, wrong := randomBytes(3000), randomBytes(3000)
	bigRight, bigWrong := randomBytes(2<<20), randomBytes(2<<20)
	m := r.members[2]
	m.place("f", wrong)
	m.place("g", bigWrong)
	m.local[blake3.Sum256(right)] = m.local[blake3.Sum256(wrong)]
	m.local[blake3.Sum256(bigRight)] = m.local[blake3.Sum256(bigWrong)]
	wants := []Want{{Hash: blake3.Sum256(right), Size: 3000}, {Hash: blake3.Sum256(bigRight), Size: 2 << 20}}
	missing, err := r.members[1].Fetch(t.Context(), []uint64{2}, wants)
	if len(missing) != 2 || !errors.Is(err, ErrChanged) {
		t.Errorf("%d missing, err %v", len(missing), err)
	}
	if rd, ok, err := m.Open(wants[1].Hash, wants[1].Size); ok {
		n, err := rd.Read(make([]byte, 3<<20))
		if n != 0 || !errors.Is(err, ErrDamaged) {
			t.Errorf("a placed file with other bytes yields %d bytes, %v", n, err)
		}
		if err := rd.Close(); err != nil {
			t.Error(err)
		}
	} else {
		t.Error(err)
	}
}

func TestConcurrentPushersShareSyncs(t *testing.T) {
	r := newRig(t, 5)
	var running sync.WaitGroup
	const each = 60
	for node := uint64(2); node <= 5; node++ {
		p := r.members[node].Pusher(1)
		for range 4 {
			running.Go(func() {
				for range each / 4 {
					items, _ := small(1, 3000)
					if err := p.Push(t.Context(), items); err != nil {
						t.Error(err)
					}
					if !r.members[1].Has(items[0].Hash) {
						t.Error("pushed, but not there")
					}
				}
			})
		}
	}
	running.Wait()
	st := r.members[1].Stats().Packs
	if st.Contents != 4*each || st.Syncs >= uint64(st.Contents) {
		t.Errorf("%d contents with %d syncs", st.Contents, st.Syncs)
	}
	if n := r.dialled.Load(); n != 4 {
		t.Errorf("%d connections for four pushers", n)
	}
}

func TestCancelledPushLeavesTheConnectionUsable(t *testing.T) {
	r := newRig(t, 2)
	p := r.members[1].Pusher(2)
	data := randomBytes(32 << 20)
	path := writeFile(t, data)
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		item := fileItem(path, data)
		open := item.Open
		item.Open = func() (Source, error) {
			src, err := open()
			return cancelling{src, cancel}, err
		}
		if err := p.Push(ctx, []Item{item}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		cancel()
	}
	if err := p.Push(t.Context(), []Item{fileItem(path, data)}); err != nil {
		t.Fatal(err)
	}
	r.members[2].holds(data)
	if n := r.dialled.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

type cancelling struct {
	Source
	cancel func()
}

func (c cancelling) ReadAt(p []byte, off int64) (int, error) {
	if off > 8<<20 {
		c.cancel()
	}
	return c.Source.ReadAt(p, off)
}
