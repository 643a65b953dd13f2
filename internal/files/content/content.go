// Package content is where the bytes of a files group wait on a node between being pushed or fetched and being
// placed, and how they travel between its members. A content is named by the BLAKE3-256 of all of it.
//
// It knows nothing of paths' meaning, versions or the log: the owner says what is needed and when it no longer
// is. It is not an archive: placed files are; it finds their bytes through callbacks, and by chunk through a
// table of hints. DESIGN.md beside this file has formats, limits and the order of durability.
//
// Goroutines: Serve runs three for its connection, and one for each large transfer on it; a Pusher and Fetch run
// two for each connection they hold, and one for each large transfer. Close ends those that the Store dialled
// and waits for them; Serve waits for its own.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// SmallMax is the size in bytes up to which a content is kept in a pack and travels in one piece. Larger ones
// are files of their own and travel by chunks.
const SmallMax = pack.MaxContent

// ExpireAfter is how long a content stays that nothing names (I4).
const ExpireAfter = time.Hour

var (
	// ErrChanged: the bytes read are not those that the hash names; the file was modified meanwhile.
	ErrChanged = errors.New("content changed while being read")
	// ErrDamaged: bytes kept on this node no longer match their hash.
	ErrDamaged = errors.New("content does not match its hash")
	// ErrNoSpace: staging would leave less free space than the reserve. It is also unix.ENOSPC.
	ErrNoSpace = fmt.Errorf("not enough free space to stage contents: %w", unix.ENOSPC)
	// ErrMember: the member at the other end failed, for a reason of its own that its log tells.
	ErrMember = errors.New("the other member failed")
	// ErrClosed: the Store or Pusher was closed.
	ErrClosed = errors.New("content store is closed")
)

// Source is an open content; *os.File is one. ReadAt may be called concurrently, but not while Read is.
type Source interface {
	io.Reader
	io.ReaderAt
	io.Closer
}

// Options of Open.
type Options struct {
	Dir string           // the work area, on the binding's file system
	Now func() time.Time // for expiry; network deadlines use the system's clock

	// Free returns the bytes available at dir; nil: Statfs.
	Free func(dir string) (uint64, error)
	// Sync makes the data of a large content durable; nil: fdatasync.
	Sync func(*os.File) error
	// Clone makes dst share the blocks of all that src has; nil: FICLONE, which few file systems can.
	Clone func(dst, src *os.File) error
	// Reserve is what staging leaves free, in bytes.
	Reserve uint64
	// Roomy is how many bytes have to be free for files to linger, see Retire; 0: 1 GiB, or a twentieth of the file system.
	Roomy uint64

	// Dial opens a stream to the Serve of the same group on another member.
	Dial func(ctx context.Context, node uint64) (net.Conn, error)
	// Local opens a placed file that is believed to have this content; nil: there are none. The hint is the
	// path that the asking member knows for it, or "".
	Local func(h manifest.Hash, hint string) (Source, bool)
	// OpenPath opens whatever regular file is at a path of the binding, for the chunks in it; nil: none.
	OpenPath func(path string) (Source, bool)
	// Chunks keeps the table of chunks in placed large files; nil: only the old version at a path is used.
	Chunks kv.Store

	// Stall is how long a peer may make no progress at all before it is given up; 0: 5 s. The same on all
	// members: each shows that it lives four times as often.
	Stall time.Duration
	// Idle is how long an unused connection is kept; 0: 1 min.
	Idle time.Duration

	Log *slog.Logger // nil: discarded
}

// Store holds the staged contents of one group on one node. All methods may be called concurrently.
type Store struct {
	opts    Options
	packs   *pack.Log
	table   chunkTable
	recipes recipeCache
	buffers sync.Pool // *[]byte of frameSpace

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // goroutines of dialled sessions

	mu       sync.Mutex
	large    map[manifest.Hash]*largeFile
	parts    map[string]bool // part files being written
	fetchers map[uint64]*peer
	moved    Traffic
	promised int64 // bytes that large contents under way still need
	gone     lingerers
	arriving map[manifest.Hash]chan struct{} // contents that come; closed when that is over
}

type largeFile struct {
	size    int64
	staged  time.Time
	uses    int
	taken   bool // by the placer: it has the name with takenSuffix, or is in its place
	unnamed bool // its name is not durable yet: it does not count
}

// Traffic counts the bytes of contents since Open.
type Traffic struct {
	Received int64 // over the network, verified and staged: of large contents chunk by chunk
	Sent     int64
	Reused   int64 // of large contents: found on this node instead
}

// Stats is what the store holds now.
type Stats struct {
	Packs      pack.Stats
	Large      int   // complete staged files
	LargeBytes int64 // of those
	Lingering  int64 // bytes of files that have left their paths and are kept for a while, see Retire
	Traffic    Traffic
}

// Open opens the work area, creating it if need be, and finds what an earlier process left in it.
func Open(opts Options) (*Store, error) {
	if opts.Free == nil {
		opts.Free = Statfs
	}
	if opts.Sync == nil {
		opts.Sync = pack.Fdatasync
	}
	if opts.Clone == nil {
		opts.Clone = func(dst, src *os.File) error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }
	}
	if opts.Stall <= 0 {
		opts.Stall = 5 * time.Second
	}
	if opts.Idle <= 0 {
		opts.Idle = time.Minute
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		opts: opts, table: chunkTable{opts.Chunks}, recipes: recipeCache{known: map[manifest.Hash]chunk.Recipe{}},
		large: map[manifest.Hash]*largeFile{}, parts: map[string]bool{}, fetchers: map[uint64]*peer{},
		gone:     lingerers{byName: map[string]*lingering{}, byPath: map[string]*lingering{}},
		arriving: map[manifest.Hash]chan struct{}{},
	}
	s.buffers.New = func() any { b := make([]byte, frameSpace); return &b }
	if err := errors.Join(s.findLarge(), s.openGone()); err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	packs, err := pack.Open(s.packDir(), pack.Options{Now: opts.Now})
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	// The names of the directories and of what is in large: a killed process may have left them unsynced.
	for _, dir := range []string{s.largeDir(), opts.Dir, filepath.Dir(opts.Dir)} {
		if err := pack.SyncDir(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("open content store: %w", err), packs.Close())
		}
	}
	s.packs = packs
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends the connections that the Store dialled and closes its files. Serve must have returned, and no
// other method may be running.
func (s *Store) Close() error {
	s.cancel()
	s.running.Wait()
	s.mu.Lock()
	s.forgoAllLocked() // a node that is stopped keeps nothing from making room
	s.mu.Unlock()
	return s.packs.Close()
}

// Statfs returns the bytes that an unprivileged process may still write at dir.
func Statfs(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// Put stages a small content that this node has in memory. It is durable after Sync.
func (s *Store) Put(h manifest.Hash, data []byte) error {
	if len(data) > SmallMax {
		return fmt.Errorf("stage %x: %d bytes are more than %d", h[:4], len(data), SmallMax)
	}
	record := make([]byte, pack.HeaderSize+len(data))
	pack.PutHeader(record, h, len(data))
	copy(record[pack.HeaderSize:], data)
	wrong := false
	if err := s.stage(record, func(int) { wrong = true }); err != nil {
		return err
	}
	if wrong {
		return fmt.Errorf("stage %x: %w", h[:4], ErrChanged)
	}
	return nil
}

// stage appends records (their buffer is used up) if there is room.
func (s *Store) stage(records []byte, refused func(i int)) error {
	if err := s.room(int64(len(records))); err != nil {
		return err
	}
	return s.GiveUp(s.packs.Append(records, refused))
}

// Dirs are the directories in which contents are written.
func (s *Store) Dirs() []string { return []string{s.packDir(), s.largeDir()} }

func (s *Store) packDir() string { return filepath.Join(s.opts.Dir, "packs") }

// Sync makes durable every small content that was staged before the call; concurrent calls share the work.
func (s *Store) Sync() error { return s.packs.Sync() }

// Has says whether the content is staged here, whole.
func (s *Store) Has(h manifest.Hash) bool {
	if s.packs.Has(h) {
		return true
	}
	_, ok := s.largePath(h)
	return ok
}

// Small implements place.Contents.
func (s *Store) Small(h manifest.Hash) ([]byte, bool) { return s.packs.Get(h) }

// Open implements place.Contents. A reader of a placed file verifies as it goes: it fails with ErrDamaged
// instead of yielding the last bytes of a content that does not match, or that is shorter or longer than size.
func (s *Store) Open(h manifest.Hash, size int64) (io.ReadCloser, bool, error) {
	if data, ok := s.packs.Get(h); ok {
		return memory{data}.open(), true, nil
	}
	switch f, err := s.openStaged(h); {
	case err != nil:
		return nil, false, err
	case f != nil:
		return f, true, nil
	}
	if s.opts.Local == nil {
		return nil, false, nil
	}
	src, ok := s.opts.Local(h, "")
	if !ok {
		return nil, false, nil
	}
	return newVerifier(src, h, size), true, nil
}

// openStaged opens a complete large content, or returns nil.
func (s *Store) openStaged(h manifest.Hash) (*os.File, error) {
	path, ok := s.largePath(h)
	if !ok {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open staged content: %w", err)
	}
	return f, nil
}

// TakeStaged implements place.Contents. The content is the caller's from here on: only Open finds it still, as
// long as the file is there. A content that was staged several times is not given away: what else names it may find
// it nowhere else once that first place has something else.
func (s *Store) TakeStaged(h manifest.Hash) (string, bool) { return s.takeLarge(h) }

// Release says that each content is needed once less than before: it was placed, or what named it is void. A
// content that was staged several times has to be released as often, or expires. It stays until Drop, but for one that
// was taken, which is in its place.
func (s *Store) Release(hashes ...manifest.Hash) error {
	s.packs.Release(hashes...)
	return s.releaseLarge(hashes)
}

// Drop lets those of the contents go that were released as often as staged. A content that was placed may go once it is
// durable in its place: until then what is staged may be the only copy that outlives a power failure.
func (s *Store) Drop(hashes ...manifest.Hash) error {
	return errors.Join(s.packs.Drop(hashes...), s.dropLarge(hashes))
}

// Expire drops contents that were last staged an hour ago or earlier and that stillNamed says false of, and
// abandoned partial transfers of that age. stillNamed is called without locks held.
func (s *Store) Expire(now time.Time, stillNamed func(manifest.Hash) bool) error {
	before := now.Add(-ExpireAfter)
	return errors.Join(s.packs.Expire(before, stillNamed), s.expireLarge(before, stillNamed))
}

// Stats returns what is staged and what has moved.
func (s *Store) Stats() Stats {
	st := Stats{Packs: s.packs.Stats()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.large {
		st.Large++
		st.LargeBytes += f.size
	}
	st.Traffic, st.Lingering = s.moved, s.gone.bytes
	return st
}

func (s *Store) count(t Traffic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved.Received += t.Received
	s.moved.Sent += t.Sent
	s.moved.Reused += t.Reused
}
