package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// settleAge is how long ago a file must have been changed for a pass to take it as complete.
const settleAge = time.Second

// pollWatcher walks the tree again and again and compares how each entry looks with a signature of how it did. A
// change that restores everything stat shows, the change time included, cannot be seen.
type pollWatcher struct {
	cfg      *Config
	root     *vfs.Root
	barriers *barriers
	tick     <-chan time.Time
	stop     func()
	wake     chan struct{} // holds one: a pass is wanted now
	closed   chan struct{}
	closing  sync.Once

	reading sync.Mutex // held by Read; guards what follows
	out     batch
	seed    maphash.Seed
	top     uint64            // signature of the root itself
	known   map[string][]byte // directory → its records, sorted by name
	next    []byte            // scratch for the records of the directory being read
	list    vfs.Lister
	gone    bool
}

// Layout of a record in pollWatcher.known: signature, kind, length of the name, name.
const recordHeader = 8 + 1 + 2

func openPoll(cfg *Config, barriers *barriers) (_ source, err error) {
	root, err := vfs.OpenRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	w := &pollWatcher{
		cfg: cfg, root: root, barriers: barriers, wake: make(chan struct{}, 1), closed: make(chan struct{}),
		seed: maphash.MakeSeed(), known: map[string][]byte{},
	}
	w.tick, w.stop = cfg.Tick(cfg.PollEvery)
	if err := w.pass(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	w.out.take() // what is there now is what changes are told from
	return w, nil
}

func (w *pollWatcher) Read(ctx context.Context) ([]Event, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	for !w.gone {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.closed:
			return nil, fmt.Errorf("poll: %w", os.ErrClosed)
		case <-w.tick:
		case <-w.wake:
		}
		ids := w.barriers.waiting()
		if err := w.root.Check(); err != nil {
			w.cfg.Log.Warn("watched root is gone", "root", w.cfg.Root, "error", err)
			w.gone = true
			w.out.gone()
		} else if err := w.pass(); err != nil {
			return nil, err
		}
		for _, id := range ids {
			if w.barriers.done(id) {
				w.out.barrier(id)
			}
		}
		if len(w.out.events) > 0 {
			return w.collapse(w.out.take()), nil
		}
	}
	return nil, ErrGone
}

// collapse turns more hints than anybody should be given into one.
func (w *pollWatcher) collapse(events []Event) []Event {
	if len(events) <= maxFound {
		return events
	}
	few := []Event{{Kind: Rescan}}
	for _, ev := range events {
		if ev.Kind == Barrier || ev.Kind == Gone {
			few = append(few, ev)
		}
	}
	return few
}

// pass reads the whole tree once and adds a hint for what is not as it was.
func (w *pollWatcher) pass() error {
	if err := w.compareTop(); err != nil {
		return fmt.Errorf("poll %s: %w", w.cfg.Root, err)
	}
	for stack := []string{""}; len(stack) > 0; {
		select {
		case <-w.closed:
			return fmt.Errorf("poll: %w", os.ErrClosed)
		default:
		}
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		entries, err := w.read(dir)
		if err != nil {
			if dir == "" {
				return fmt.Errorf("poll %s: %w", w.cfg.Root, err)
			}
			if !vfs.NoSuchDir(err) {
				w.cfg.Log.Warn("directory cannot be read", "root", w.cfg.Root, "path", dir, "error", err)
			}
			continue // as it was; if it vanished, the next pass finds that out in its parent
		}
		w.compare(dir, entries)
		for i := range entries {
			if entries[i].Info.Kind == vfs.Dir {
				stack = append(stack, vfs.Join(dir, entries[i].Name))
			}
		}
	}
	return nil
}

func (w *pollWatcher) compareTop() error {
	info, err := vfs.StatFd(w.root.Fd())
	if err != nil {
		return err
	}
	if sign := w.sign(&info); sign != w.top {
		w.top = sign
		w.out.add(Look, "", "")
	}
	return nil
}

// read lists the entries of dir that are ours.
func (w *pollWatcher) read(dir string) ([]vfs.Entry, error) {
	fd, err := vfs.OpenBeneath(w.root.Fd(), dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	entries, err := w.list.List(fd)
	if err != nil {
		return nil, err
	}
	kept := entries[:0]
	for _, e := range entries {
		if !w.cfg.Ignore(vfs.Join(dir, e.Name)) {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

// compare merges the records of dir with its entries, both sorted, and remembers the entries.
func (w *pollWatcher) compare(dir string, entries []vfs.Entry) {
	old, next := w.known[dir], w.next[:0]
	for i := range entries {
		e := &entries[i]
		for len(old) > 0 && recordName(old) < e.Name {
			old = w.vanished(dir, old)
		}
		sign := w.sign(&e.Info)
		next = appendRecord(next, sign, e)
		switch {
		case len(old) == 0 || recordName(old) != e.Name:
			w.out.add(w.kind(&e.Info), dir, e.Name)
		case binary.NativeEndian.Uint64(old) != sign:
			if old[8] == byte(vfs.Dir) && e.Info.Kind != vfs.Dir {
				w.forget(vfs.Join(dir, e.Name))
				w.out.add(Rescan, dir, e.Name)
			}
			w.out.add(w.kind(&e.Info), dir, e.Name)
			fallthrough
		default:
			old = old[recordLen(old):]
		}
	}
	for len(old) > 0 {
		old = w.vanished(dir, old)
	}
	w.next = next
	w.known[dir] = append(w.known[dir][:0:0], next...)
}

// vanished handles the first of the records old, whose entry is gone, and returns the rest.
func (w *pollWatcher) vanished(dir string, old []byte) []byte {
	kind := Look
	if old[8] == byte(vfs.Dir) {
		kind = Rescan // another directory may be there by the time somebody looks
		w.forget(vfs.Join(dir, recordName(old)))
	}
	w.out.add(kind, dir, recordName(old))
	return old[recordLen(old):]
}

// forget drops what is known of a directory and all beneath it.
func (w *pollWatcher) forget(dir string) {
	for old := w.known[dir]; len(old) > 0; old = old[recordLen(old):] {
		if old[8] == byte(vfs.Dir) {
			w.forget(vfs.Join(dir, recordName(old)))
		}
	}
	delete(w.known, dir)
}

// sign condenses how an entry looks. Of a directory only what is kept counts, and that it is the same one.
func (w *pollWatcher) sign(in *vfs.Info) uint64 {
	sign := *in
	if in.Kind == vfs.Dir {
		sign.Size, sign.Nlink, sign.CTime = 0, 0, 0
	}
	return maphash.Comparable(w.seed, sign)
}

func (w *pollWatcher) kind(in *vfs.Info) Kind {
	age := w.cfg.Now().Sub(time.Unix(0, in.MTime))
	if in.Kind == vfs.File && age >= 0 && age < settleAge {
		return Settle
	}
	return Look
}

func appendRecord(to []byte, sign uint64, e *vfs.Entry) []byte {
	to = binary.NativeEndian.AppendUint64(to, sign)
	to = append(to, byte(e.Info.Kind))
	to = binary.NativeEndian.AppendUint16(to, uint16(len(e.Name)))
	return append(to, e.Name...)
}

func recordLen(rec []byte) int {
	return recordHeader + int(binary.NativeEndian.Uint16(rec[9:]))
}

func recordName(rec []byte) string { return string(rec[recordHeader:recordLen(rec)]) }

// cookie asks for a pass that begins after now.
func (w *pollWatcher) cookie(uint64) error {
	select {
	case w.wake <- struct{}{}:
	default: // a pass that has not begun yet is wanted already
	}
	return nil
}

func (w *pollWatcher) Overflows() uint64 { return 0 }

func (w *pollWatcher) Close() error {
	w.closing.Do(func() { close(w.closed) }) // ends a Read that waits
	w.reading.Lock()
	defer w.reading.Unlock()
	w.stop()
	return w.root.Close()
}
