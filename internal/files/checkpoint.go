package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// Positions and marks in the placed table.
const (
	metaPlaced = "placed" // placed index that is durable on disk: everything up to it, contents too
	metaSynced = "synced" // number of the last checkpoint whose syncfs is over
	metaBoot   = "boot"   // hash of the boot in which the binding was opened last, or bootClean or bootUnknown
	metaBegan  = "began"  // index that the group had committed when the binding was taken up first
	metaMade   = "made"   // the root did not exist when the binding was taken up first
)

// Values of metaBoot that are no boot's.
const (
	bootClean   = 0 // nobody has the binding open
	bootUnknown = 1 // what was recorded since the last checkpoint is to be verified, whichever boot this is
)

// tick is how often what waits for a time is looked at.
const tick = 20 * time.Millisecond

// timeLoop does what is due: retries, checkpoints, the guard's look at the root, expiry.
func (a *Agent) timeLoop(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	now := a.cfg.Now()
	checkAt, sweepAt, expireAt := now.Add(a.cfg.Checkpoint), now.Add(time.Second), now.Add(time.Minute)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now = a.cfg.Now()
		a.board.due(now)
		if now.After(checkAt) {
			a.checkRoot()
			a.forgetWithheld()
			if err := a.checkpoint(false); err != nil {
				a.broken(err)
				return
			}
			if a.board.takeRest() {
				debug.FreeOSMemory() // most of the heap of a busy time is free now, and would be kept
			}
			checkAt = a.cfg.Now().Add(a.cfg.Checkpoint)
		}
		if now.After(sweepAt) {
			a.store.Sweep(now)
			sweepAt = now.Add(time.Second)
		}
		if now.After(expireAt) {
			a.expire(now)
			a.scanUnread()
			expireAt = now.Add(time.Minute)
		}
	}
}

// checkpoint makes everything up to the placed index durable and records that: files first, then the records
// that speak of them, then the index. clean says that nothing will be placed any more.
func (a *Agent) checkpoint(clean bool) error {
	index := a.board.placedIndex()
	if index <= a.durable.Load() && !clean {
		if err := a.spareLog(); err != nil || a.unsynced.idle() {
			return err
		}
		return a.syncPlaced()
	}
	number := a.checkpoints.Add(1) // before the sync: what is recorded from here on may be too late for it
	if err := a.syncPlaced(); err != nil {
		return err
	}
	b := a.cfg.Table.Batch()
	defer b.Discard()
	index = max(index, a.durable.Load())
	if err := errors.Join(a.table.setNumber(b, metaPlaced, index), a.table.setNumber(b, metaSynced, number)); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if clean {
		if err := a.table.setNumber(b, metaBoot, bootClean); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := a.cfg.Table.Sync(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	a.durable.Store(index)
	a.floor.Store(max(index, a.floor.Load()))
	return nil
}

// spareLog lets the log go on being cut while something cannot be placed: what it would be needed for, the
// contents that came with entries and are not on disk, is staged durably instead.
func (a *Agent) spareLog() error {
	if a.board.takenIndex() <= a.floor.Load() {
		return nil
	}
	upTo, err := a.stageUnplaced()
	if err != nil || upTo <= a.floor.Load() {
		return err
	}
	if err := a.syncPlaced(); err != nil { // beyond the placed index
		return err
	}
	a.floor.Store(upTo)
	return nil
}

// stageUnplaced stages the contents that came with entries and wait, durably, and returns the index up to which all
// are staged or were placed; 0 if some could not be.
func (a *Agent) stageUnplaced() (index uint64, err error) {
	index, wants := a.board.unplaced()
	changes := make([]manifest.Changed, len(wants))
	for i, w := range wants {
		changes[i] = w.Changed
	}
	all := a.keepInline(changes)
	if err := a.store.Sync(); err != nil {
		return 0, fmt.Errorf("stage contents that are not placed: %w", err)
	}
	if !all {
		return 0, nil
	}
	a.board.staged(wants)
	return index, nil
}

// Floor is the index up to which everything is durably on this node's disk, placed or staged: the log is needed
// above it only.
func (a *Agent) Floor() uint64 { return a.floor.Load() }

// Placed is the index up to which everything is on this node's disk.
func (a *Agent) Placed() uint64 { return a.board.placedIndex() }

// bootNumber identifies this boot of the system; never bootClean.
func (a *Agent) bootNumber() uint64 {
	id := a.cfg.BootID
	if id == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return bootUnknown
		}
		id = string(b)
	}
	sum := blake3.Sum256([]byte(id))
	return binary.LittleEndian.Uint64(sum[:]) | 2
}

// distrust verifies, after the system went down without a clean stop or a sync has failed, what was placed since the last
// checkpoint: its content may not have reached the disk. The death of the process alone loses records at most: see follows.
func (a *Agent) distrust(ctx context.Context) error {
	boot, err := a.table.number(metaBoot)
	if err != nil {
		return err
	}
	now := a.bootNumber()
	if boot == bootClean || boot == now && now != bootUnknown {
		return a.markBoot(now)
	}
	synced, err := a.table.number(metaSynced)
	if err != nil {
		return err
	}
	a.wentBack = true
	a.status.setMode("scan", "verifying what was placed just before the system went down")
	e := a.table.edit()
	defer e.discard()
	err = a.table.walk(a.cfg.Table, nil, func(_ []byte, path string, rec record) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Its version says nothing: a file may be placed again as it was, or be found rewritten as it was.
		if rec.Stat.Kind != manifest.File || rec.After < synced && rec.Version != 0 {
			return nil
		}
		return a.verifyOne(e, path, rec)
	})
	if err == nil {
		err = e.commit()
	}
	if err != nil {
		return fmt.Errorf("verify what was placed: %w", err)
	}
	return a.markBoot(now)
}

// verifyOne keeps the record of a file whose content is as it should be. Other content is kept aside, and the
// manifest's state takes its place. A file that cannot be read or kept aside stays as it is and is a problem of
// its own; an error means that the placed table failed.
func (a *Agent) verifyOne(e *edits, path string, rec record) error {
	h, in, err := a.hashStored(path)
	if errors.Is(err, os.ErrNotExist) || vfs.NoSuchDir(err) || errors.Is(err, vfs.ErrNotRegular) {
		return a.setRecord(e, path, rec.Stat.Kind, record{}) // the scan and the walk settle it
	}
	if err != nil {
		a.unverified(path, err)
		return nil
	}
	if h == rec.Hash && in.Size == rec.Stat.Size {
		return nil
	}
	if in.Size > 0 {
		if err := a.keepAside(path); err != nil {
			a.unverified(path, fmt.Errorf("it has other content than was placed; keep that aside: %w", err))
			return nil
		}
	}
	a.log.Warn("content did not reach the disk before the system went down", "path", path)
	return a.setRecord(e, path, rec.Stat.Kind, record{Placed: place.Placed{Stat: place.StatOf(in)}, Hash: h})
}

// unverified says that what was placed at path may not be there.
func (a *Agent) unverified(path string, err error) {
	err = fmt.Errorf("not verified after the system went down: %w", err)
	a.log.Warn("verify what was placed", "path", path, "err", err)
	a.status.problemHint(path, err, "verify the directory when the file can be read")
}

// markBoot says durably in which boot the binding was open last.
func (a *Agent) markBoot(boot uint64) error {
	b := a.cfg.Table.Batch()
	defer b.Discard()
	err := a.table.setNumber(b, metaBoot, boot)
	if err == nil {
		err = b.Commit()
	}
	if err == nil {
		err = a.cfg.Table.Sync()
	}
	if err != nil {
		return fmt.Errorf("mark the binding as open: %w", err)
	}
	return nil
}

// hashFile reads a whole file.
func (a *Agent) hashFile(path string) (h manifest.Hash, in vfs.Info, err error) {
	f, in, err := a.root.Open(path)
	if err != nil {
		return h, in, err
	}
	defer f.Close()
	return hashOpen(f, in)
}

// hashStored is hashFile of what the disk has: memory may still have what could not be written.
func (a *Agent) hashStored(path string) (h manifest.Hash, in vfs.Info, err error) {
	f, in, err := a.root.Open(path)
	if err != nil {
		return h, in, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return h, in, fmt.Errorf("read from the disk: %w", err)
	}
	return hashOpen(f, in)
}

func hashOpen(f *os.File, in vfs.Info) (h manifest.Hash, _ vfs.Info, err error) {
	sum := blake3.New()
	if _, err := io.Copy(sum, f); err != nil {
		return h, in, err
	}
	sum.Sum(h[:0])
	return h, in, nil
}

// keepAside copies a file to Work/kept, durably, where it stays until somebody removes it.
func (a *Agent) keepAside(path string) error {
	f, _, err := a.root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	dir := filepath.Join(a.cfg.Work, "kept")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, name := vfs.Split(path)
	out, err := os.CreateTemp(dir, a.cfg.Now().UTC().Format("20060102-150405-*-")+name[:min(len(name), 200)])
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(out.Name())) // it is tried again, under another name
	}
	return errors.Join(pack.SyncDir(dir), pack.SyncDir(a.cfg.Work)) // what is kept may be nowhere else in a moment
}

// revertEdit is what a read-only binding does about a finding.
func (a *Agent) revertEdit(f *finding) {
	edits, err := a.consult([]finding{*f})
	if err != nil {
		a.broken(err)
		return
	}
	for i := range edits {
		a.revert(&edits[i])
	}
}

// revert undoes a local change of a read-only binding: what a user wrote is kept aside, the manifest's state
// comes back.
func (a *Agent) revert(f *finding) {
	path := f.change.Path
	done := func() error {
		if f.stat.Kind == manifest.File && (f.old.Stat.Kind != manifest.File || f.old.Hash != f.change.Node.Hash) {
			if err := a.keepAside(path); err != nil {
				return fmt.Errorf("keep a local change aside: %w", err)
			}
		}
		return a.recordOne(path, f.old.Stat.Kind, record{Placed: place.Placed{Stat: f.recorded()}, Hash: contentOf(&f.change.Node)})
	}
	if err := done(); err != nil {
		a.lookFailed(path, err)
		return
	}
	a.status.drifted()
	a.rechecks.add(path, 0)
	a.board.nudge()
	a.lookEnds(path, f.young)
}
