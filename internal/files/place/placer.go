package place

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// Config of a Placer.
type Config struct {
	Root string // the binding's directory
	Work string // work directory (see WorkDir): on the same mount as Root, 0700, ours
	// Owner says whether uid and gid are set (we are root). If not, files belong to whom they belong by
	// default, and owners never count when disk and manifest are compared.
	Owner   bool
	Workers int              // directories filled at the same time; 0 is 4
	Reserve int64            // bytes to leave free; 0 is 1 % of the file system or 64 MiB, the smaller; < 0 is none
	Now     func() time.Time // nil is time.Now; only for the age of the free-space figure
	Log     *slog.Logger     // nil logs nothing
}

// Placer brings a binding's disk to what tasks want. Call Recover once before the first Apply. Safe for
// concurrent use, but one Apply runs at a time.
type Placer struct {
	root    *vfs.Root
	work    int    // descriptor of Work/place: prepared and displaced objects
	kept    int    // descriptor of Work/kept: bytes of others that could not be put back
	intent  int    // descriptor of Work/place/intent: where displaced objects belong
	workDir string // Config.Work
	owner   bool
	workers int
	space   space
	log     *slog.Logger

	lacks         atomic.Uint32 // what the file system turned out not to do: lack bits
	ownersSkipped atomic.Bool   // an entry was placed with another owner than wanted, because Config.Owner is false

	mu        sync.Mutex // one Apply or Recover at a time
	seq       uint64     // next number for names in Work/place, under mu
	recovered bool       // under mu

	// hook, in tests, is told of each step on a path just before it is taken.
	hook func(step, path string)
}

type lack = uint32

const (
	lackTmpfile  lack = 1 << iota // O_TMPFILE
	lackExchange                  // renameat2(RENAME_EXCHANGE)
	lackNoClob                    // renameat2(RENAME_NOREPLACE)
	lackLease                     // fcntl(F_SETLEASE)
	lackNanos                     // times finer than a second
	lackEnd
)

var lackText = map[lack]string{
	lackTmpfile: "the file system has no unnamed files: new files are prepared in the work directory",
	lackExchange: "the file system cannot exchange names: a file that somebody renames onto a name in the very " +
		"moment that name is replaced is lost, and a directory that becomes a file is missing for a moment",
	lackNoClob: "the file system cannot rename without clobbering: a directory created in the very moment that " +
		"the same one is placed is replaced if it is empty",
	lackLease: "no leases on some files (not our own, or the file system has none): a program that holds a file " +
		"open for writing while it is replaced writes into the old one unnoticed",
	lackNanos: "the file system keeps times in whole seconds only",
}

// errNotRecovered says that Apply was called before Recover.
var errNotRecovered = errors.New("place: Recover was not called")

// New opens the binding and its work directory. It changes nothing but making Work/place and Work/kept.
func New(cfg Config) (*Placer, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = 4 // on two cores 100,000 files are there 7 % sooner than with 2: workers wait for the disk, too
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	root, err := vfs.OpenRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	p := &Placer{
		root: root, work: -1, kept: -1, intent: -1, workDir: cfg.Work,
		owner: cfg.Owner, workers: cfg.Workers, log: cfg.Log,
		space: space{fd: root.Fd(), reserve: cfg.Reserve, now: cfg.Now},
	}
	if err := p.openWork(cfg); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Placer) openWork(cfg Config) error {
	top, err := openWorkTop(p.root.Fd(), cfg)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	if p.work, err = openPrivate(top, "place"); err != nil {
		return fmt.Errorf("work directory %s: %w", cfg.Work, err)
	}
	if p.kept, err = openPrivate(top, "kept"); err != nil {
		return fmt.Errorf("work directory %s: %w", cfg.Work, err)
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if p.intent, err = openat(p.work, intentName, flags, 0o600); err != nil {
		return fmt.Errorf("open %s in work directory %s: %w", intentName, cfg.Work, err)
	}
	return nil
}

// openWorkTop opens Config.Work, beneath the root without following symlinks if it lies there: whoever owns
// the binding may rename things in it.
func openWorkTop(root int, cfg Config) (int, error) {
	var fd int
	rel, err := filepath.Rel(cfg.Root, cfg.Work)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		fd, err = vfs.OpenBeneath(root, rel)
	} else {
		fd, err = openat(unix.AT_FDCWD, cfg.Work, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("open work directory %s: %w", cfg.Work, err)
	}
	in, err := vfs.StatFd(fd)
	if err == nil && (in.UID != uint32(unix.Geteuid()) || in.Mode&0o022 != 0) {
		err = fmt.Errorf("owner %d, mode %04o: must be ours, and not writable by others: %w", in.UID, in.Mode, unix.EPERM)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("work directory %s: %w", cfg.Work, err)
	}
	return fd, nil
}

// openPrivate opens the directory name of dirfd, made with mode 0700 if it is not there.
func openPrivate(dirfd int, name string) (int, error) {
	if err := unix.Mkdirat(dirfd, name, 0o700); err != nil && err != unix.EEXIST {
		return -1, fmt.Errorf("mkdir %s: %w", name, err)
	}
	return vfs.OpenBeneath(dirfd, name)
}

// Close closes the descriptors. No Apply may run or follow.
func (p *Placer) Close() error {
	for _, fd := range []int{p.work, p.kept, p.intent} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return p.root.Close()
}

// Problems are the weaknesses found so far, in words for an operator: things that this user or file system
// cannot do, and what that means. Each is listed once.
func (p *Placer) Problems() []string {
	var out []string
	if p.ownersSkipped.Load() {
		out = append(out, "owners are not set: not running as root, or not allowed to change them")
	}
	for bit := lackTmpfile; bit < lackEnd; bit <<= 1 {
		if p.lacking(bit) {
			out = append(out, lackText[bit])
		}
	}
	return out
}

func (p *Placer) lacking(l lack) bool { return p.lacks.Load()&l != 0 }

// learn notes that the file system does not do l.
func (p *Placer) learn(l lack) { p.lacks.Or(l) }

// at tells a test that step on path is next.
func (p *Placer) at(step, path string) {
	if p.hook != nil {
		p.hook(step, path)
	}
}

// Apply carries out tasks (any order in; the placer orders them: moves aside and deletions deepest first, directories, files,
// then directory metadata) and returns one result a task, same order, and the directories that changed without a task. A
// cancelled context fails the tasks that were not begun.
func (p *Placer) Apply(ctx context.Context, tasks []Task, from Contents) ([]Result, []Touched) {
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make([]Result, len(tasks))
	err := p.root.Check()
	if err == nil && !p.recovered {
		err = errNotRecovered
	}
	b := newBatch(p, tasks, results, from)
	if err == nil {
		if err = p.writeIntent(b); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			// Deleting must go on when the disk is full. A crash now keeps what it cannot put back.
			p.log.Warn("place: without an intent", "err", err)
			err = nil
		}
	}
	if err != nil {
		for i := range results {
			results[i] = Result{Code: Failed, Err: err}
		}
		return results, nil
	}
	p.seq += uint64(len(tasks))
	return results, b.run(ctx)
}
