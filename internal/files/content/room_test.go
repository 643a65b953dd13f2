package content

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Contents that are under way do not take the room of one another, and holes that an attempt left are not room.
func TestRoomIsPromisedOnce(t *testing.T) {
	m := newRig(t, 1).members[1]
	m.opts.Reserve = 1 << 20
	m.free.Store(12 << 20)
	begin := func(b byte) (*staging, error) { return m.beginStaging(manifest.Hash{b}, 8<<20, "") }
	one, err := begin(1)
	if err != nil {
		t.Fatal(err)
	}
	var full *RoomError
	if _, err := begin(2); !errors.As(err, &full) || full.Need != 8<<20 || full.Free != 4<<20 || full.Reserve != 1<<20 {
		t.Fatalf("a second content of 8 MiB on 12 MiB: %v", err)
	}
	if !errors.Is(full, ErrNoSpace) || !errors.Is(full, unix.ENOSPC) || !strings.Contains(full.Error(), "8.0 MiB needed and 1.0 MiB to be left free, 4.0 MiB free") {
		t.Error(full)
	}
	if err := errors.Join(one.write(0, []byte(strings.Repeat("x", 1<<20))), one.f.Truncate(8<<20), one.abandon(true)); err != nil {
		t.Fatal(err)
	}
	two, err := begin(2)
	if err != nil {
		t.Fatalf("what was given up still has its room: %v", err)
	}
	if err := two.abandon(false); err != nil {
		t.Fatal(err)
	}
	m.free.Store(4 << 20)
	if _, err := begin(1); !errors.As(err, &full) || full.Need < 6<<20 {
		t.Fatalf("7 MiB to come on a disk with 4: %v", err)
	}
	if m.promised != 0 {
		t.Errorf("%d bytes stay promised", m.promised)
	}
}

// A disk that turns out to be full when all of a content was written: the problem says what is missing, and with room the
// next attempt goes on with what is there.
func TestFullAtTheEnd(t *testing.T) {
	r := newRig(t, 2)
	big := append(make([]byte, 2<<20), randomBytes(3<<20)...) // begins with a hole
	r.members[1].place("big", big)
	m := r.members[2]
	var full atomic.Bool
	full.Store(true)
	m.opts.Sync = func(f *os.File) error {
		if full.Load() {
			return unix.ENOSPC
		}
		return pack.Fdatasync(f)
	}
	want := Want{Hash: blake3.Sum256(big), Size: int64(len(big))}
	_, err := m.Fetch(t.Context(), []uint64{1}, []Want{want})
	var failed *FetchError
	if !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if e := failed.NoRoom[want.Hash]; e == nil || e.Need < 1<<20 || e.Need > 3<<20 {
		t.Errorf("what is missing: %v", e)
	}
	if m.promised != 0 {
		t.Errorf("%d bytes stay promised", m.promised)
	}
	full.Store(false)
	if missing, err := m.Fetch(t.Context(), []uint64{1}, []Want{want}); len(missing) > 0 {
		t.Errorf("with room there is missing %v: %v", missing, err)
	}
	if received := m.Stats().Traffic.Received; received > int64(len(big)) {
		t.Errorf("%d bytes were received, of %d", received, len(big))
	}
}

// A content whose sync failed is written anew: memory may still show what the kernel could not write and has given up.
func TestFailedSyncIsNotTrusted(t *testing.T) {
	r := newRig(t, 2)
	big := randomBytes(3 << 20)
	r.members[1].place("big", big)
	m := r.members[2]
	failed := false
	m.opts.Sync = func(f *os.File) error {
		if !failed {
			failed = true
			return unix.EIO
		}
		return pack.Fdatasync(f)
	}
	want := Want{Hash: blake3.Sum256(big), Size: int64(len(big))}
	if _, err := m.Fetch(t.Context(), []uint64{1}, []Want{want}); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if missing, err := m.Fetch(t.Context(), []uint64{1}, []Want{want}); len(missing) > 0 {
		t.Errorf("missing %v: %v", missing, err)
	}
	if st := m.Stats().Traffic; st.Reused > 0 || st.Received != 2*int64(len(big)) {
		t.Errorf("what could not be synced was taken for durable: %+v", st)
	}
}

// A Fetch tells for which contents there is no room; what no member has is another matter.
func TestFetchTellsWhatHasNoRoom(t *testing.T) {
	r := newRig(t, 2)
	big, small := randomBytes(3<<20), []byte("small")
	r.members[1].place("big", big)
	r.members[1].place("small", small)
	wants := []Want{{Hash: blake3.Sum256(big), Size: int64(len(big))}, {Hash: blake3.Sum256(small), Size: 5}, {Hash: manifest.Hash{9}, Size: 10}}
	m := r.members[2]
	m.free.Store(2 << 20)
	missing, err := m.Fetch(t.Context(), []uint64{1}, wants)
	var failed *FetchError
	if !errors.As(err, &failed) || len(missing) != 2 {
		t.Fatalf("missing %v, %v", missing, err)
	}
	if full := failed.NoRoom[wants[0].Hash]; full == nil || full.Need != 3<<20 {
		t.Errorf("the large content: %v", full)
	}
	if full := failed.NoRoom[wants[2].Hash]; full != nil {
		t.Errorf("what nobody has: %v", full)
	}
	m.free.Store(64 << 20)
	if missing, _ := m.Fetch(t.Context(), []uint64{1}, wants); len(missing) != 1 || missing[0].Hash != wants[2].Hash {
		t.Errorf("with room there is missing %v", missing)
	}
}

// TestResult: what a peer is told of a transfer's end is what it takes it for, with the room that was missing.
func TestResult(t *testing.T) {
	room := &RoomError{Need: 30 << 20, Reserve: 1 << 20, Free: 3}
	c, result, err := parseResult(appendResult(nil, errors.Join(errors.New("write"), room)))
	var got *RoomError
	if c != codeFull || err != nil || !errors.As(result, &got) || *got != *room || !errors.Is(result, ErrNoSpace) {
		t.Error(c, result, err)
	}
	for _, want := range []error{nil, ErrChanged, ErrNoSpace} {
		if _, result, err := parseResult(appendResult(nil, want)); err != nil || !errors.Is(result, want) {
			t.Error(want, result, err)
		}
	}
	full := appendResult(nil, room)
	for _, body := range [][]byte{nil, {byte(codeOK), 0}, full[:resultMax-1], append([]byte{byte(codeFailed)}, full[1:]...),
		append([]byte{byte(codeFull)}, bytes.Repeat([]byte{0xff}, resultMax-1)...)} {
		if _, _, err := parseResult(body); !errors.Is(err, errProtocol) {
			t.Errorf("%x: %v", body, err)
		}
	}
}
