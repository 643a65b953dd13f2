package content

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

var _ place.Contents = (*Store)(nil)

func none(manifest.Hash) bool { return false }

// stageLarge stages a large content as a transfer would, all of it or only its first chunks.
func (m *member) stageLarge(data []byte, chunks int) manifest.Hash {
	m.rig.t.Helper()
	h := manifest.Hash(blake3.Sum256(data))
	g, err := m.beginStaging(h, int64(len(data)), "")
	if err != nil {
		m.rig.t.Fatal(err)
	}
	refs, err := chunk.NewSplitter(bytes.NewReader(data)).Segment(segmentRefs)
	if err != nil {
		m.rig.t.Fatal(err)
	}
	if _, err := g.plan(refs); err != nil {
		m.rig.t.Fatal(err)
	}
	for len(g.expect) > 0 && chunks > 0 {
		chunks--
		p := g.expect[0]
		before := m.Stats().Traffic.Received
		if err := g.chunk(p.offset, data[p.offset:][:p.ref.Len]); err != nil {
			m.rig.t.Fatal(err)
		}
		if got := m.Stats().Traffic.Received - before; got != int64(p.ref.Len) { // while it is under way
			m.rig.t.Fatalf("a chunk of %d bytes counts as %d", p.ref.Len, got)
		}
	}
	if len(g.expect) > 0 {
		err = g.abandon(true)
	} else {
		err = g.finish()
	}
	if err != nil {
		m.rig.t.Fatal(err)
	}
	return h
}

func TestTakeStaged(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(3 << 20)
	h := m.stageLarge(data, 100)
	path, ok := m.TakeStaged(h)
	if !ok {
		t.Fatal("a staged content cannot be taken")
	}
	if _, again := m.TakeStaged(h); again {
		t.Error("taken twice")
	}
	m.holds(data) // until it is renamed away
	if err := os.Rename(path, filepath.Join(m.tree, "f")); err != nil {
		t.Fatal(err)
	}
	if m.Has(h) {
		t.Error("still there after it was renamed away")
	}
	if err := m.Release(h); err != nil {
		t.Error(err)
	}
	m.stageLarge(data, 100)
	if _, ok := m.TakeStaged(h); !ok {
		t.Error("staged anew, it cannot be taken")
	}
}

// TestTakenIsThereAfterRestart: a process that ended before it could place what it took has it at the next start.
func TestTakenIsThereAfterRestart(t *testing.T) {
	r := newRig(t, 1)
	m := r.members[1]
	data := randomBytes(1 << 20)
	h := m.stageLarge(data, 100)
	if _, ok := m.TakeStaged(h); !ok {
		t.Fatal("a staged content cannot be taken")
	}
	r.restart(1)
	m.holds(data)
	if _, ok := m.TakeStaged(h); !ok {
		t.Error("it cannot be taken again")
	}
}

// TestTakenOnlyOnce: a content that two paths wait for outlives the placing of the first, whenever it is staged for the
// second: before the first takes it, while it has it, or after.
func TestTakenOnlyOnce(t *testing.T) {
	r := newRig(t, 1)
	m := r.members[1]
	place := func(h manifest.Hash) {
		if path, ok := m.TakeStaged(h); ok {
			if err := os.Rename(path, filepath.Join(m.tree, "f")); err != nil {
				t.Fatal(err)
			}
		}
	}
	release := func(h manifest.Hash) {
		if err := errors.Join(m.Release(h), m.Drop(h)); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"before", "taken", "placed"} {
		data := randomBytes(1 << 20)
		h := m.stageLarge(data, 100)
		switch when {
		case "before":
			if !m.touchLarge(h) {
				t.Fatal("a staged content is not there")
			}
			place(h)
		case "taken":
			path, ok := m.TakeStaged(h)
			if !ok || m.touchLarge(h) {
				t.Fatalf("taken %v, and counted once more", ok)
			}
			m.stageLarge(data, 100)
			if err := os.Rename(path, filepath.Join(m.tree, "f")); err != nil {
				t.Fatal(err)
			}
		case "placed":
			place(h)
			if m.touchLarge(h) {
				t.Fatal("counted once more when it was gone")
			}
			m.stageLarge(data, 100)
		}
		release(h)
		if err := os.RemoveAll(filepath.Join(m.tree, "f")); err != nil {
			t.Fatal(err)
		}
		m.holds(data)
		if _, ok := m.TakeStaged(h); !ok {
			t.Errorf("%s: the last one cannot be taken", when)
		}
		m.holds(data)
		release(h)
		if m.Has(h) {
			t.Errorf("%s: released, it is there still", when)
		}
	}
	if names, err := os.ReadDir(m.largeDir()); err != nil || len(names) != 0 {
		t.Errorf("%v are left, %v", names, err)
	}
}

func TestLargeAccounting(t *testing.T) {
	r := newRig(t, 1)
	m := r.members[1]
	now := time.Now()
	m.opts.Now = func() time.Time { return now }
	a, b := m.stageLarge(randomBytes(1<<20), 100), m.stageLarge(randomBytes(1<<20), 100)
	if !m.touchLarge(a) {
		t.Fatal("a staged content is not there")
	}
	if err := m.Release(a, b); err != nil || !m.Has(b) {
		t.Fatalf("gone before it is durable in its place: %v", err)
	}
	if err := m.Drop(a, b); err != nil {
		t.Fatal(err)
	}
	if !m.Has(a) || m.Has(b) {
		t.Errorf("staged twice: kept %v; staged once: kept %v", m.Has(a), m.Has(b))
	}
	half := m.stageLarge(randomBytes(3<<20), 2)
	if err := m.Expire(now.Add(ExpireAfter-time.Minute), none); err != nil || !m.Has(a) {
		t.Errorf("expired early: %v", err)
	}
	if err := m.Expire(now.Add(ExpireAfter+time.Minute), func(h manifest.Hash) bool { return h == a }); err != nil || !m.Has(a) {
		t.Errorf("expired while named: %v", err)
	}
	if _, err := os.Stat(m.largeName(half) + partSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an abandoned part file is left: %v", err)
	}
	if err := m.Expire(now.Add(ExpireAfter+time.Minute), none); err != nil || m.Has(a) {
		t.Errorf("not expired: %v", err)
	}
	names, err := os.ReadDir(m.largeDir())
	if err != nil || len(names) != 0 {
		t.Errorf("%d files are left, %v", len(names), err)
	}
	if st := m.Stats(); st.Large != 0 || st.LargeBytes != 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestPartFileIsNotTrusted: whatever a crash made of a part file, the content comes out right, and what is right
// in it does not move again.
func TestPartFileIsNotTrusted(t *testing.T) {
	r := newRig(t, 2)
	m := r.members[2]
	data := randomBytes(8 << 20)
	clear(data[4<<20 : 6<<20])
	h := m.stageLarge(data, 100)
	path := m.largeName(h)
	if err := errors.Join(m.Release(h), m.Drop(h)); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(data)
	damaged[5<<20] = 1 // where a hole belongs
	clear(damaged[3<<20 : 3<<20+4096])
	if err := os.WriteFile(path+partSuffix, damaged[:7<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	before := m.Stats().Traffic.Received
	if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
		t.Fatal(err)
	}
	m.holds(data)
	if n := m.Stats().Traffic.Received - before; n < 1<<20 || n > 5<<20 {
		t.Errorf("%d bytes moved to repair one block and the missing end", n)
	}
}

func TestTwoTransfersOfOneContent(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(1 << 20)
	h := manifest.Hash(blake3.Sum256(data))
	first, err := m.beginStaging(h, int64(len(data)), "")
	if err != nil {
		t.Fatal(err)
	}
	m.stageLarge(data, 100)
	m.holds(data)
	if err := first.abandon(false); err != nil {
		t.Error(err)
	}
	m.holds(data)
}

func TestVerifierHoldsBackTheEnd(t *testing.T) {
	data := randomBytes(10_000)
	h := manifest.Hash(blake3.Sum256(data))
	other := bytes.Clone(data)
	other[5] ^= 1
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		src  io.Reader
		want error
	}{
		"same":       {bytes.NewReader(data), nil},
		"one by one": {iotest.OneByteReader(bytes.NewReader(data)), nil},
		"other":      {bytes.NewReader(other), ErrDamaged},
		"shorter":    {bytes.NewReader(data[:9999]), ErrDamaged},
		"longer":     {bytes.NewReader(append(bytes.Clone(data), 0)), ErrDamaged},
		"broken":     {io.MultiReader(bytes.NewReader(data[:500]), iotest.ErrReader(broken)), broken},
	} {
		got, err := io.ReadAll(newVerifier(plain{c.src}, h, int64(len(data))))
		if !errors.Is(err, c.want) || (err == nil) != bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := io.ReadAll(newVerifier(plain{bytes.NewReader(nil)}, blake3.Sum256(nil), 0)); err != nil {
		t.Errorf("empty: %v", err)
	}
}

type plain struct{ io.Reader }

func (plain) Close() error                      { return nil }
func (plain) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

func TestPutRefuses(t *testing.T) {
	m := newRig(t, 1).members[1]
	if err := m.Put(manifest.Hash{1}, []byte("x")); !errors.Is(err, ErrChanged) {
		t.Errorf("wrong hash: %v", err)
	}
	big := make([]byte, SmallMax+1)
	if err := m.Put(blake3.Sum256(big), big); err == nil {
		t.Error("a large content was put into a pack")
	}
	m.free.Store(10)
	if err := m.Put(blake3.Sum256([]byte("x")), []byte("x")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("no space: %v", err)
	}
}

// TestStagedOnceNamed: a large content counts as staged, and another member is told so, once its name is durable and not before.
func TestStagedOnceNamed(t *testing.T) {
	s := newRig(t, 1).members[1]
	h := manifest.Hash{1}
	part := s.claimPart(h)
	defer s.unlockPart(part)
	finish := func() {
		t.Helper()
		if err := errors.Join(os.WriteFile(part, []byte("whole"), 0o600), s.adopt(part, h, 5)); err != nil {
			t.Fatal(err)
		}
	}
	staged := func(want bool) {
		t.Helper()
		if has, touched := s.Has(h), s.touchLarge(h); has != want || touched != want {
			t.Errorf("staged: %v, %v, want %v", has, touched, want)
		}
	}
	finish()
	staged(false)
	if _, ok := s.TakeStaged(h); ok {
		t.Error("given away")
	}
	finish() // by another, at the same time
	staged(false)
	if err := s.nameLarge(h); err != nil {
		t.Fatal(err)
	}
	staged(true)
	finish()
	staged(true) // it was, and is
	if err := errors.Join(s.Release(h, h, h, h, h), s.Drop(h)); err != nil {
		t.Fatal(err)
	}
	staged(false)
	if err := s.nameLarge(h); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("named what is gone: %v", err)
	}
	finish()
	away := s.largeDir() + ".away"
	if err := os.Rename(s.largeDir(), away); err != nil {
		t.Fatal(err)
	}
	if err := s.nameLarge(h); err == nil || s.large[h] != nil {
		t.Errorf("its name is not durable: %v", err)
	}
	if err := os.Rename(away, s.largeDir()); err != nil {
		t.Fatal(err)
	}
}
