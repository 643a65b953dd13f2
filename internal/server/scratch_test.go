package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
)

// Sets on disk: what is counted twice, what one lacks of another, over several batches and at their edges.
func TestScratchSets(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	s, err := newScratch(scratchCache, scratchTable)
	must(err)
	name := func(i int) backup.Hash { return blake3.Sum256(fmt.Append(nil, i)) }
	const n = 2*setBatch + 100
	for k, missing := range []int{-1, 0, setBatch, n - 1} {
		held, named := s.set(fmt.Sprint("held", k)), s.set(fmt.Sprint("named", k))
		for i := range n {
			must(named.note(name(i), fmt.Sprint(i)))
			if i != missing {
				must(held.Add(name(i)))
			}
		}
		must(held.Add(name(n))) // more than is named
		must(held.Add(name(1))) // twice
		want := n + 1
		if missing >= 0 {
			want--
		}
		if got, err := held.distinct(); err != nil || got != uint64(want) {
			t.Errorf("missing %d: %d are held, want %d, %v", missing, got, want, err)
		}
		about, lacks, err := named.lacking(held)
		if err != nil || lacks != (missing >= 0) || lacks && about != fmt.Sprint(missing) {
			t.Errorf("missing %d: %q %v %v", missing, about, lacks, err)
		}
		for _, i := range []int{0, setBatch, n - 1, n} {
			if has, err := held.Has(name(i)); err != nil || has != (i != missing) {
				t.Errorf("missing %d: has %d %v, %v", missing, i, has, err)
			}
		}
		held.close()
		named.close()
	}
	must(s.close())
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Whatever a reader of a backup makes of it that its scratch store has failed, what is said is where there is no room.
func TestScratchFailed(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for errno, code := range map[syscall.Errno]api.Code{syscall.ENOSPC: api.CodeFull, syscall.EDQUOT: api.CodeFull, syscall.EIO: api.CodeFailed} {
		s, err := newScratch(scratchCache, scratchTable)
		if err != nil {
			t.Fatal(err)
		}
		s.fail(fmt.Errorf("write: %w", errno))
		if err := s.blame(nil); err != nil {
			t.Errorf("%v where all was read", err)
		}
		err = BackupFile{Path: "f"}.backupError("backup verify", s.blame(fmt.Errorf("%w: the state of group web", backup.ErrDamaged)))
		var e *api.Error
		if !errors.As(err, &e) || e.Code != code || e.Op != "backup verify" || e.Subject != os.TempDir() || !strings.Contains(e.Hint, "TMPDIR") {
			t.Errorf("%v: %+v", errno, err)
		}
		if err := errors.Join(s.Store.Close(), s.close()); err != nil {
			t.Error(err)
		}
	}
}

// An upload in which a content comes twice is damaged: the file of the first tells.
func TestReceivedTwice(t *testing.T) {
	dir := t.TempDir()
	r, w := io.Pipe()
	go func() {
		out := backup.NewFragment(w, unminded{})
		var err error
		for range 2 {
			_, e := out.Content(blake3.Sum256([]byte("x")), 1, strings.NewReader("x"))
			err = errors.Join(err, e)
		}
		w.CloseWithError(errors.Join(err, out.EndGroup()))
	}()
	err := backup.ReadFragment(r, backup.Handler{Seen: received(dir), Content: func(h backup.Hash, _ uint64, body io.Reader) error {
		return writeFile(dir+"/"+h.String(), body)
	}})
	r.Close()
	if !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("taken twice: %v", err)
	}
}

// TestScratchIsBlamed: what a write to the store for temporary files fails for is not the backup's damage, also when the store
// said so to its caller alone.
func TestScratchIsBlamed(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s, err := newScratch(namesCache, namesTable)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	write := &fs.PathError{Op: "write", Path: filepath.Join(s.dir, "000004.log"), Err: syscall.ENOSPC}
	taken := fmt.Errorf("%w: the state of group web: %w", backup.ErrDamaged, write)
	if failed := new(scratchError); !errors.As(s.blame(taken), &failed) || failed.asAPI("backup verify").Code != api.CodeFull {
		t.Errorf("%v is blamed on %v", taken, s.blame(taken))
	}
	read := fmt.Errorf("%w: %w", backup.ErrDamaged, &fs.PathError{Op: "read", Path: "saved.lockstep", Err: syscall.EIO})
	if got := s.blame(read); got != read {
		t.Errorf("%v is blamed on %v", read, got)
	}
}
