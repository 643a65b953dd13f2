package server

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// scratch is a store on disk, in the directory for temporary files, for what may be too much for memory: the states of
// a backup and the names of its contents. It takes about 400 bytes a file that the backup holds, and goes with close.
type scratch struct {
	kv.Store
	dir    string
	failed atomic.Pointer[scratchError] // the disk
}

// scratchError is a lack of room, or another failure, where temporary files go.
type scratchError struct {
	dir string
	err error
}

func (e *scratchError) Error() string {
	return "keep in " + e.dir + " what has to be remembered of a backup: " + e.err.Error()
}
func (e *scratchError) Unwrap() error { return e.err }

// asAPI says what can be done.
func (e *scratchError) asAPI(op string) *api.Error {
	out := &api.Error{Code: api.CodeFailed, Op: op, Subject: e.dir, Why: e.Error(), Hint: "name another directory for temporary files with TMPDIR"}
	if isFull(e.err) {
		out.Code = api.CodeFull
		out.Hint = "make room there, or name a directory on another file system with TMPDIR; about 400 bytes are needed for each file in the backup"
	}
	return out
}

// Buffers of a scratch store, which is written and read in order mostly; and of one that is asked for names in no order,
// beside a node's work.
const (
	scratchCache = 8 << 20
	scratchTable = 2 << 20
	namesCache   = 1 << 20
	namesTable   = 1 << 20
)

func newScratch(cache int64, table uint64) (*scratch, error) {
	dir, err := os.MkdirTemp("", "lockstep-backup-")
	if err != nil {
		return nil, &scratchError{os.TempDir(), err}
	}
	s := &scratch{dir: dir}
	s.Store, err = kv.OpenPebble(dir, kv.PebbleOptions{CacheBytes: cache, MemTableBytes: table, NoWait: true, OnError: s.fail})
	if err != nil {
		return nil, errors.Join(&scratchError{os.TempDir(), err}, os.RemoveAll(dir))
	}
	return s, nil
}

// fail notes what is an error of the next call as well.
func (s *scratch) fail(err error) { s.failed.CompareAndSwap(nil, &scratchError{os.TempDir(), err}) }

// blame returns why the scratch store failed, which is then why whoever used it has err, whatever that one made of it.
func (s *scratch) blame(err error) error {
	if why := s.failed.Load(); why != nil && err != nil {
		return why
	}
	if at := (*fs.PathError)(nil); errors.As(err, &at) && strings.HasPrefix(at.Path, s.dir+string(os.PathSeparator)) {
		return &scratchError{os.TempDir(), at}
	}
	return err
}

func (s *scratch) close() (err error) {
	if s.failed.Load() == nil { // else it may not return
		err = s.Store.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// part is an empty part of it.
func (s *scratch) part(name string) kv.Store { return kv.Prefixed(s.Store, []byte(name+"/")) }

// set makes an empty set; it is to be closed before the scratch.
func (s *scratch) set(name string) *contentSet {
	store := s.part(name)
	return &contentSet{store: store, b: store.Batch()}
}

// remembering runs do with a set on disk for the contents that it writes.
func remembering(op string, do func(seen backup.Set) error) error {
	s, err := newScratch(namesCache, namesTable)
	if err == nil {
		seen := s.set("written")
		err = do(seen)
		seen.close()
		err = s.blame(errors.Join(err, s.close()))
	}
	if failed := new(scratchError); errors.As(err, &failed) {
		return failed.asAPI(op)
	}
	return err
}

// contentSet is a backup.Set on disk, with a few bytes of each content. Not safe for concurrent use.
type contentSet struct {
	store kv.Store
	b     kv.Batch // what was added last
	added uint64
}

// setBatch is how many contents a batch holds.
const setBatch = 4096

// Add implements backup.Set.
func (c *contentSet) Add(h backup.Hash) error { return c.note(h, "") }

// note adds a content with what is to be known of it.
func (c *contentSet) note(h backup.Hash, about string) error {
	if err := c.b.Set(h[:], []byte(about)); err != nil {
		return err
	}
	if c.added++; c.added%setBatch != 0 {
		return nil
	}
	return c.flush()
}

func (c *contentSet) flush() error {
	err := c.b.Commit()
	c.b = c.store.Batch()
	return err
}

// distinct counts what is in it.
func (c *contentSet) distinct() (n uint64, err error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	err = c.store.Scan(nil, nil, func(_, _ []byte) error { n++; return nil })
	return n, err
}

// lacking returns what was noted of one content that is not in other, which was flushed; found is false if all are.
// Both are read in order: to ask for one after the other as a directory names them would read a block for each.
func (c *contentSet) lacking(other *contentSet) (about string, found bool, err error) {
	if err := c.flush(); err != nil {
		return "", false, err
	}
	keys, notes := make([][]byte, 0, setBatch), make([]string, 0, setBatch)
	ask := func() error {
		next := 0
		err := other.store.Lookup(keys, func(i int, _ []byte) error {
			if i > next {
				return kv.ErrStop
			}
			next++
			return nil
		})
		if err == nil && next < len(keys) {
			about, found = notes[next], true
			err = kv.ErrStop
		}
		keys, notes = keys[:0], notes[:0]
		return err
	}
	err = c.store.Scan(nil, nil, func(k, v []byte) error {
		keys, notes = append(keys, bytes.Clone(k)), append(notes, string(v))
		if len(keys) < setBatch {
			return nil
		}
		return ask()
	})
	if err == nil && !found && len(keys) > 0 {
		if err = ask(); errors.Is(err, kv.ErrStop) {
			err = nil
		}
	}
	return about, found, err
}

// Has implements backup.Set.
func (c *contentSet) Has(h backup.Hash) (bool, error) {
	_, ok, err := c.b.Get(h[:])
	return ok, err
}

func (c *contentSet) close() { c.b.Discard() }

// collected is a contentSet that does not know while it grows what is in it: what came twice shows when all is counted.
type collected struct{ *contentSet }

// Has implements backup.Set.
func (collected) Has(backup.Hash) (bool, error) { return false, nil }

// unminded is the Set of a backup that was verified just before.
type unminded struct{}

func (unminded) Add(backup.Hash) error         { return nil }
func (unminded) Has(backup.Hash) (bool, error) { return false, nil }
