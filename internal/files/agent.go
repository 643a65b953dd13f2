// Package files keeps one directory of this node, a binding, in step with a files group: it turns what
// changes on the disk into proposals and what the group decided into files. See Agent.
//
// It decides nothing about conflicts (the manifest machine does), touches the disk only through the placer,
// and knows no transport: the group's log and the other members come in as Log and Peers.
//
// The placed table is never wrong for long: of every path whose record is not what is on the disk a look is due, or a scan
// that finds it. For directories that means: once it is quiet, the times of each are those of the manifest. Whoever makes a
// record of what a hint was about, so that the look which the hint asked for finds nothing, has the directory above
// looked at too, whose times changed with the entry; whoever scans a directory has everything beneath it that is on its way
// into the table looked at once more, because it may be of a directory that was there before. Only entries that are
// ignored change a directory's times unseen, until the next full scan.
//
// Goroutines, all started by Run and joined before it returns: one reads the watcher, one scans, a few look
// at paths, one gathers batches and one a batch in flight proposes them, one places, one keeps time
// (checkpoints, retries, guards), and to each other member one pushes what is small and two what is large.
package files

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/watch"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// The default reserve of free space.
const (
	reserveShare = 100 // at most one part in so many of the file system
	reserveMax   = 64 << 20
)

// Log is the group as the agent sees it.
type Log interface {
	// Propose has payload applied exactly once, retrying what is UNKNOWN itself until ctx ends. Lacking are members that
	// should have held the contents that it names (Holders.All) and did not in time: a quorum is all that it can have.
	Propose(ctx context.Context, payload []byte, lacking []uint64) (index uint64, result []byte, err error)
	// Fence returns when the local state includes everything that was committed before the call, and everything that a
	// process before this one proposed and that is ever committed.
	Fence(ctx context.Context) error
	// Applied is the index that the local state includes.
	Applied() uint64
	// View is the machine's state now; the caller closes it.
	View() (kv.View, error)
	// Backlog is the number of proposals that wait: contents ride in entries only while it is small.
	Backlog() int
}

// Replayer is implemented by a Log that can show committed commands again. It should be, and the log kept
// above Agent.Floor: contents that rode in entries may be nowhere else after a crash of all members.
type Replayer interface {
	// Replay gives fn the indexes and payloads of the entries in (after, upTo] that are still in the log, in order. An entry
	// may have several.
	Replay(ctx context.Context, after, upTo uint64, fn func(index uint64, payload []byte) error) error
}

// Peer is another member of the group.
type Peer struct {
	ID   uint64
	Name string
	Up   bool
}

// Peers are the other members.
type Peers interface {
	List() []Peer
	// Dial opens a stream to the member's ServeContent for this group.
	Dial(ctx context.Context, id uint64) (net.Conn, error)
	// Holders may answer differently every time: while contents wait, it is asked again.
	Holders() Holders
}

// Watcher opens a watch.Watcher; watch.Open is one.
type Watcher func(watch.Config) (watch.Watcher, error)

// Config of an Agent. All up to Peers is required.
type Config struct {
	GroupID string    // stands in the root marker
	Created time.Time // when the group was; the marker's mtime
	Node    string    // this node's name: the author of its changes
	Root    string    // the binding
	Work    string    // work area, on the binding's mount; place.WorkDir finds it
	// Claim is the hold on Root; the agent lets it go in the end, also if New fails. nil: New takes it.
	Claim  *place.Claim
	Table  kv.Store // the placed table, for this binding alone
	Log    Log
	Peers  Peers
	Resume string // how a person confirms deletions that wait for it: a command, for a hint; may be empty

	Chunks kv.Store // where chunks of large files are; nil: only old versions at the same path are used
	// Extra opens contents that this node has outside of the binding, those of a backup; nil: there are none.
	Extra    func(h manifest.Hash) (content.Source, bool)
	Owner    bool // set owners (running as root), if it turns out that this process may
	ReadOnly bool // local changes are reverted, not proposed
	Ignore   func(rel string) bool

	Watch      Watcher       // nil: watch.Open
	Quiet      []string      // directories elsewhere to which this process writes much, see watch.Config
	Readers    int           // files read at the same time; 0: 2
	ScanEvery  time.Duration // the slow rescan; 0: an hour
	Checkpoint time.Duration // between two checkpoints; 0: 3 s
	Youth      time.Duration // for how long a change may leave a file's ctime as it was; 0: found out, see young.go
	Reserve    uint64        // bytes that staging leaves free; 0: 1 % of the file system or 64 MiB, the smaller
	BootID     string        // this boot of the system; "" reads it from /proc
	Now        func() time.Time
	Logger     *slog.Logger

	walkStep int                // entries of the manifest that a walk compares at a time; 0: 4,096
	syncfs   func(fd int) error // makes a file system durable; nil: syncfs(2)
}

// Agent keeps one binding. Changed, Restored and ServeContent may be called before and while Run runs.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	table  table
	board  *board
	store  *content.Store
	placer *place.Placer
	claim  *place.Claim
	root   *vfs.Root
	kept   []place.Kept

	wentBack bool   // the system went down: the disk may be of an earlier moment than the group remembers
	began    uint64 // what the group had committed before this binding proposed anything

	begun    chan struct{}   // closed once the first scan is due: only then is there anything to wait for
	over     chan struct{}   // closed when Run ends: then nothing is to be waited for any more
	ctx      context.Context // Run's, for what its goroutines wait for
	fail     context.CancelCauseFunc
	results  chan []finding
	rescan   chan struct{} // something is in scanDue
	shipping *shipping
	guard    guard
	status   status
	scanDue  scanQueue
	barriers barrierWaits

	watchMu sync.Mutex
	watcher watch.Watcher

	rechecks    rechecks
	durable     atomic.Uint64 // placed index of the last checkpoint
	checkpoints atomic.Uint64 // how many were begun, as far as the placed table remembers
	floor       atomic.Uint64 // see Floor
	unsynced    unsynced
}

// New opens the binding: work area, contents, placer, placed table. It fails if Root is not the binding of
// this group (ErrStopped's reasons); a binding that nothing was ever placed in is marked first.
func New(cfg Config) (*Agent, error) {
	defaults(&cfg)
	a := &Agent{
		cfg: cfg, log: cfg.Logger, table: table{cfg.Table}, board: newBoard(cfg.Now),
		claim: cfg.Claim, results: make(chan []finding, 64), rescan: make(chan struct{}, 1), begun: make(chan struct{}), over: make(chan struct{}),
	}
	// What the group has applied so far is not known to be on disk: until all of it was compared, what is committed
	// from now on must not move the placed index past it.
	a.board.restart(0)
	a.guard.now = cfg.Now
	a.status.start(cfg.Now)
	if err := a.open(); err != nil {
		a.closeAll()
		return nil, fmt.Errorf("binding %s: %w", cfg.Root, err)
	}
	return a, nil
}

func defaults(cfg *Config) {
	if cfg.Watch == nil {
		cfg.Watch = watch.Open
	}
	if cfg.Readers <= 0 {
		cfg.Readers = 2
	}
	if cfg.ScanEvery <= 0 {
		cfg.ScanEvery = time.Hour
	}
	if cfg.walkStep <= 0 {
		cfg.walkStep = walkStep
	}
	if cfg.syncfs == nil {
		cfg.syncfs = unix.Syncfs
	}
	if cfg.Checkpoint <= 0 {
		cfg.Checkpoint = 3 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	more := cfg.Ignore
	cfg.Ignore = func(rel string) bool { return reserved(rel) || more != nil && more(rel) }
}

// reserved says whether rel is Lockstep's own.
func reserved(rel string) bool {
	const name = manifest.Reserved
	return len(rel) >= len(name) && rel[:len(name)] == name && (len(rel) == len(name) || rel[len(name)] == '/')
}

func (a *Agent) open() (err error) {
	known, err := a.countPlaced()
	if err != nil {
		return err
	}
	if known > 0 {
		err = place.CheckMarker(a.cfg.Root, a.cfg.GroupID)
	} else {
		err = place.EnsureMarker(a.cfg.Root, a.cfg.GroupID, a.cfg.Created)
	}
	if err == nil && a.claim == nil {
		a.claim, err = place.Take(a.cfg.Root, a.cfg.GroupID)
	}
	if err != nil {
		return err
	}
	if a.guard.mount, err = place.MountID(a.cfg.Root); err != nil {
		return err
	}
	// Directories are opened anew for every look: a kept descriptor would show a tree that was moved away.
	if a.root, err = vfs.OpenRoot(a.cfg.Root); err != nil {
		return err
	}
	if a.cfg.Owner {
		if a.cfg.Owner, err = place.MayChown(a.cfg.Work); err != nil {
			a.log.Warn("find out whether owners can be set; it is taken that they can", "err", err)
		} else if !a.cfg.Owner {
			a.log.Warn("owners are not set: this process may not change them", "path", a.cfg.Root)
		}
	}
	if a.placer, err = place.New(place.Config{Root: a.cfg.Root, Work: a.cfg.Work, Owner: a.cfg.Owner, Log: a.log}); err != nil {
		return err
	}
	if a.kept, err = a.placer.Recover(); err != nil {
		return err
	}
	if a.cfg.Youth == 0 {
		if a.cfg.Youth, err = findYouth(a.cfg.Work); err != nil {
			a.log.Info("young files are read twice", "err", err)
		}
	}
	if a.cfg.Reserve == 0 {
		if a.cfg.Reserve, err = defaultReserve(a.cfg.Work); err != nil {
			return err
		}
	}
	a.store, err = content.Open(content.Options{
		Dir: a.cfg.Work, Now: a.cfg.Now, Reserve: a.cfg.Reserve, Dial: a.cfg.Peers.Dial, Log: a.log, Chunks: a.cfg.Chunks,
		Local: a.openContent, OpenPath: a.openPath,
	})
	if err != nil {
		return err
	}
	durable, err := a.table.number(metaPlaced)
	if err != nil {
		return err
	}
	synced, err := a.table.number(metaSynced)
	if err != nil {
		return err
	}
	a.checkpoints.Store(synced)
	a.durable.Store(durable)
	a.floor.Store(durable)
	return nil
}

// defaultReserve is what the placer leaves free too, so that neither takes what the other would leave.
func defaultReserve(work string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(work, &st); err != nil {
		return 0, fmt.Errorf("size of the file system of %s: %w", work, err)
	}
	return min(st.Blocks*uint64(st.Bsize)/reserveShare, reserveMax), nil
}

// countPlaced counts the files of the placed table for the guard, and says whether there is any record.
func (a *Agent) countPlaced() (records int64, err error) {
	err = a.table.walk(a.cfg.Table, nil, func(_ []byte, _ string, r record) error {
		records++
		if r.Stat.Kind == manifest.File {
			a.guard.files.Add(1)
		}
		return nil
	})
	return records, err
}

// openContent implements content.Options.Local.
func (a *Agent) openContent(h manifest.Hash, hint string) (content.Source, bool) {
	paths := make([]string, 0, 2)
	if hint != "" && manifest.ValidPath(hint) {
		paths = append(paths, hint)
	}
	if p, ok := a.table.whereIs(h); ok && p != hint {
		paths = append(paths, p)
	}
	for _, p := range paths {
		rec, err := a.table.get(p)
		if err != nil || rec.Stat.Kind != manifest.File || rec.Hash != h {
			continue
		}
		f, in, err := a.root.Open(p)
		if err != nil {
			continue
		}
		if !asRecorded(place.StatOf(in), rec.Stat) { // whoever reads it verifies it
			f.Close()
			continue
		}
		return f, true
	}
	if a.cfg.Extra != nil {
		return a.cfg.Extra(h)
	}
	return nil, false
}

// openPath implements content.Options.OpenPath.
func (a *Agent) openPath(path string) (content.Source, bool) {
	if !manifest.ValidPath(path) || path == "" {
		return nil, false
	}
	f, _, err := a.root.Open(path)
	if err != nil {
		return nil, false
	}
	return f, true
}

// ServeContent answers a stream that another member's Peers.Dial opened, and closes it in the end.
func (a *Agent) ServeContent(ctx context.Context, conn net.Conn) error {
	return a.store.Serve(ctx, conn)
}

// Close releases what New opened. Run and every ServeContent must have returned.
func (a *Agent) Close() error { return a.closeAll() }

func (a *Agent) closeAll() error {
	var errs []error
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	if a.placer != nil {
		errs = append(errs, a.placer.Close())
	}
	if a.root != nil {
		errs = append(errs, a.root.Close())
	}
	if a.claim != nil { // last: from now on another process may take the directory up
		errs = append(errs, a.claim.Close())
	}
	return errors.Join(errs...)
}

// Run keeps the binding in step until ctx ends, which is no error: everything is settled and a clean stop is
// recorded. It fails if the placed table cannot be read or written, or if the binding cannot be brought in
// order at the start.
func (a *Agent) Run(ctx context.Context) error {
	ctx, a.fail = context.WithCancelCause(ctx)
	a.ctx = ctx
	defer a.fail(nil)
	unblock := context.AfterFunc(ctx, a.board.close)
	defer unblock()
	defer a.board.close()
	defer close(a.over)
	if err := a.prepare(ctx); err != nil {
		a.closeWatcher()
		if ctx.Err() != nil && context.Cause(ctx) == ctx.Err() {
			return nil
		}
		return fmt.Errorf("binding %s: %w", a.cfg.Root, err)
	}
	a.shipping = newShipping(a)
	var running sync.WaitGroup
	running.Go(func() { a.watchLoop(ctx) })
	running.Go(func() { a.scanLoop(ctx) })
	var readers sync.WaitGroup
	for range a.cfg.Readers {
		readers.Go(a.lookLoop)
	}
	running.Go(func() { readers.Wait(); close(a.results) })
	running.Go(func() { a.gatherLoop(ctx) })
	running.Go(func() { a.placeLoop(ctx) })
	running.Go(func() { a.timeLoop(ctx) })
	running.Wait()
	a.shipping.close()
	_, err := a.stageUnplaced()
	err = errors.Join(err, a.checkpoint(true))
	if cause := context.Cause(ctx); cause != nil && cause != ctx.Err() {
		err = errors.Join(cause, err)
	}
	if err != nil {
		return fmt.Errorf("binding %s: %w", a.cfg.Root, err)
	}
	return nil
}

// prepare does what comes before anything is proposed or placed.
func (a *Agent) prepare(ctx context.Context) error {
	if err := a.openWatcher(); err != nil {
		return err
	}
	if err := a.finishPlacing(ctx); err != nil {
		return fmt.Errorf("settle what was being placed: %w", err)
	}
	if err := a.distrust(ctx); err != nil {
		return err
	}
	// I6: an old disk never argues with a newer manifest.
	a.status.setMode("scan", "waiting for the group")
	if err := a.replay(ctx); err != nil {
		return fmt.Errorf("replay the log above what is on disk: %w", err)
	}
	if err := a.cfg.Log.Fence(ctx); err != nil {
		return fmt.Errorf("wait for the group's state: %w", err)
	}
	if err := a.begin(); err != nil {
		return err
	}
	if err := a.finishEdits(ctx); err != nil {
		return err
	}
	if err := a.claimRoot(ctx); err != nil {
		return err
	}
	a.rescanAll()
	a.board.restart(a.cfg.Log.Applied())
	close(a.begun)
	return nil
}

// broken ends Run: local storage failed.
func (a *Agent) broken(err error) {
	a.log.Error("binding stops", "path", a.cfg.Root, "err", err)
	a.fail(err)
}

// Changed implements manifest.Config.Changed.
func (a *Agent) Changed(index uint64, changes []manifest.Changed) {
	all := a.board.commit(index, changes) || a.keepInline(changes)
	a.board.took(index, all)
}

// keepInline stages contents that rode in entries: a walk over the manifest brings their paths back, but not
// them. It reports whether all are staged.
func (a *Agent) keepInline(changes []manifest.Changed) bool {
	all := true
	for i := range changes {
		c := &changes[i]
		if len(c.Inline) == 0 || len(c.Inline) > content.SmallMax {
			continue
		}
		if err := a.store.Put(c.Node.Hash, c.Inline); err != nil {
			a.log.Warn("a content has to be fetched later", "path", c.Path, "err", err)
			all = false
		}
	}
	return all
}

// keepStranded stages the contents whose paths are to have something else by now.
func (a *Agent) keepStranded() {
	if !a.keepInline(a.board.takeStranded()) {
		a.board.lose()
	}
}

// replay stages the contents that rode in entries which the state includes but the disk perhaps does not.
func (a *Agent) replay(ctx context.Context) error {
	r, ok := a.cfg.Log.(Replayer)
	if !ok {
		return nil
	}
	return r.Replay(ctx, a.Floor(), a.cfg.Log.Applied(), func(_ uint64, payload []byte) error {
		b, err := manifest.DecodeBatch(payload)
		if err != nil {
			return nil // another command
		}
		for i := range b.Changes {
			c := &b.Changes[i]
			a.keepInline([]manifest.Changed{{Path: c.Path, Node: c.Node, Inline: c.Inline}})
		}
		return nil
	})
}

// Restored implements manifest.Config.Restored.
func (a *Agent) Restored(index uint64) { a.board.restart(index) }
