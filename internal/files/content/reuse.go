package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// reuse stages a large content that this node has in a file that lingers or, if it is offered, in a placed one, wherever. It
// is durable then. It is also true of what is staged already; an offered one has one more use to be released. The caller is
// the only one that has the content come.
func (s *Store) reuse(ctx context.Context, w Want, offered bool) bool {
	if offered && s.touchLarge(w.Hash) || !offered && s.Has(w.Hash) {
		return true
	}
	here := false
	if l := s.lingers(w.Hash); l != nil {
		if here = s.reused(w.Hash, s.revive(ctx, w, l)); here {
			s.served()
		}
	}
	if !here && offered && s.opts.Local != nil {
		if src, ok := s.opts.Local(w.Hash, w.PathHint); ok {
			here = s.reused(w.Hash, errors.Join(s.copyLarge(ctx, w, src), src.Close()))
		}
	}
	if here {
		s.count(Traffic{Reused: w.Size})
	}
	return here
}

// reused says whether an attempt went well. If not, whatever went wrong, the content may still be received.
func (s *Store) reused(h manifest.Hash, err error) bool {
	if err != nil {
		s.opts.Log.Info("a content that was believed to be here has to be received", "hash", fmt.Sprintf("%x", h[:4]), "err", err)
	}
	return err == nil
}

// coming waits until nobody else has the content come, by reusing or receiving it, and keeps others from it until end is
// called: what they would do has mostly been done then, and a content does not travel twice.
func (s *Store) coming(ctx context.Context, h manifest.Hash) (end func(), err error) {
	for {
		s.mu.Lock()
		other := s.arriving[h]
		if other == nil {
			done := make(chan struct{})
			s.arriving[h] = done
			s.mu.Unlock()
			return func() { s.came(h); close(done) }, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) came(h manifest.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.arriving, h)
}

// revive stages a content from a lingering file: the file itself if nobody else can have it open, else a copy. One that holds
// something else, or that cannot be made durable, is of no more use: memory would show it whole to every later attempt.
func (s *Store) revive(ctx context.Context, w Want, l *lingering) error {
	f, err := os.OpenFile(s.goneName(l.name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if alone(f, w.Size) {
		err = s.take(ctx, w, l, f)
	} else {
		err = s.copyLarge(ctx, w, f)
	}
	if errors.Is(err, ErrDamaged) {
		s.forgo(l)
	}
	return err
}

// alone says whether f is ours alone, as long as it is open and stillAlone says so: it has size bytes and no other name, and
// nobody has it open or mapped, which a write lease is granted for only. Who opens it later waits until it is closed. A
// file with extended attributes, which would go where it goes, is never alone: among them are ACLs and capabilities.
func alone(f *os.File, size int64) bool {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return false
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != size {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1 && bare(f)
}

// stillAlone says whether nobody has tried to open f since alone.
func stillAlone(f *os.File) bool {
	lease, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && lease == unix.F_WRLCK
}

// bare says whether f has no extended attributes but a label that the system gives to every file.
func bare(f *os.File) bool {
	var names [256]byte
	n, err := unix.Flistxattr(int(f.Fd()), names[:])
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) {
		return true
	}
	return err == nil && (n == 0 || string(names[:n]) == "security.selinux\x00")
}

// take makes the lingering file f, which is alone, the staged content itself, if it is that: so a content takes no more room
// for having moved.
func (s *Store) take(ctx context.Context, w Want, l *lingering, f *os.File) error {
	hasher := blake3.New()
	from := io.NewSectionReader(&untilDone{ctx, f}, 0, w.Size)
	if _, err := io.CopyBuffer(struct{ io.Writer }{hasher}, struct{ io.Reader }{from}, make([]byte, chunk.Max)); err != nil {
		return err
	}
	var sum manifest.Hash
	hasher.Sum(sum[:0])
	if sum != w.Hash {
		return ErrDamaged
	}
	if err := s.opts.Sync(f); err != nil {
		return fmt.Errorf("%w: not made durable: %w", ErrDamaged, err)
	}
	if !stillAlone(f) {
		return errors.New("somebody opens it")
	}
	if err := s.adoptGone(l); err != nil {
		return err
	}
	return s.nameLarge(l.hash)
}

// untilDone reads until ctx ends.
type untilDone struct {
	ctx context.Context
	io.ReaderAt
}

func (u *untilDone) ReadAt(p []byte, off int64) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.ReaderAt.ReadAt(p, off)
}

// adoptGone makes a lingering file a complete staged one. What the table of chunks knows of it is kept for its next path.
func (s *Store) adoptGone(l *lingering) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.adoptLocked(s.goneName(l.name), l.hash, l.size); err != nil {
		return err
	}
	l.taken = true
	s.gone.bytes -= l.size
	return nil
}
