package scan

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// errReplaced says that a directory went and came back while it was looked at.
var errReplaced = errors.New("directory is being replaced")

// Placed is the table of what was last placed. Safe for concurrent use; fn may call Children again.
type Placed interface {
	// Children calls fn for each entry placed directly in dir, sorted by raw name, and stops at an error of fn.
	Children(dir string, fn func(name string, p place.Placed) error) error
}

// Difference is a path whose disk state is not as placed.
type Difference struct {
	Path   string
	Stat   place.Stat   // how it is now; the zero Stat (Absent) if it is gone
	Placed place.Placed // how it was placed; the zero Placed if it never was
}

// Same says whether an entry is unchanged. The device number is not compared: it may change when the machine
// restarts. Of a directory only what is kept counts, because the rest changes with its entries.
func Same(a, b place.Stat) bool {
	if a.Kind == manifest.Dir && b.Kind == manifest.Dir {
		return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.MTime == b.MTime
	}
	a.Dev = b.Dev
	return a == b
}

// Compare walks at and beneath from like Walk and reports each path beneath it whose state differs from the placed
// one; from itself is left to the caller. What is new or changed is reported as it is found, a directory before what
// is in it; what is gone is reported once everything has been read, deepest first, so that a name under which the
// same content lives on is always seen before. If from is not a directory (any more), all that was placed beneath
// it is reported gone. Nothing beneath a directory that could not be read is reported. report is never called
// concurrently but from different goroutines; it must not keep the walk waiting for long.
func Compare(ctx context.Context, root int, from string, placed Placed, opts Options, report func(Difference) error) (Stats, error) {
	w, err := newWalk(root, from, opts)
	if err != nil {
		return Stats{}, err
	}
	c := &comparison{walk: w, placed: placed, report: report, workers: make([]compareWorker, w.workers)}
	w.readers = make([]reader, w.workers)
	if err = w.run(ctx, c.directory); err != nil {
		return w.stats, err
	}
	return w.stats, c.reportGone(ctx)
}

// comparison adds to a walk what Compare needs.
type comparison struct {
	*walk
	placed  Placed
	report  func(Difference) error
	workers []compareWorker

	reporting sync.Mutex
	gone      []gone // under walk.mu
}

// gone is what is missing in one directory. Only names are kept until the end, not whole records.
type gone struct {
	dir   string
	all   bool     // everything placed in dir
	names []string // else these, sorted
}

// compareWorker is what one worker reuses.
type compareWorker struct {
	differs []Difference
	missing []string
}

func (c *comparison) directory(id int, dir string) error {
	r, me := &c.readers[id], &c.workers[id]
	found, err := r.read(c.walk, dir)
	if err != nil {
		return c.lost(dir, err)
	}
	me.differs, me.missing = me.differs[:0], nil
	if err := c.merge(me, dir, found); err != nil {
		return err
	}
	if err := c.reportAll(me.differs); err != nil {
		return err
	}
	if len(me.missing) > 0 {
		c.addGone(gone{dir: dir, names: me.missing})
	}
	c.descend(dir, r.convert(found))
	return nil
}

// merge runs through the entries found and placed, both sorted, and collects into me what differs and what is gone.
func (c *comparison) merge(me *compareWorker, dir string, found []vfs.Entry) error {
	next := 0
	appeared := func(until string, all bool) {
		for ; next < len(found) && (all || found[next].Name < until); next++ {
			if e := &found[next]; e.Err == nil {
				me.differs = append(me.differs, Difference{Path: vfs.Join(dir, e.Name), Stat: place.StatOf(e.Info)})
			}
		}
	}
	err := c.placed.Children(dir, func(name string, p place.Placed) error {
		appeared(name, false)
		if next == len(found) || found[next].Name != name {
			if p.Stat.Kind != manifest.Absent && !c.ignored(dir, name) {
				me.missing = append(me.missing, name)
			}
			return nil
		}
		e := &found[next]
		next++
		if e.Err != nil {
			return nil
		}
		now := place.StatOf(e.Info)
		if Same(now, p.Stat) {
			return nil
		}
		me.differs = append(me.differs, Difference{Path: vfs.Join(dir, name), Stat: now, Placed: p})
		if p.Stat.Kind == manifest.Dir && now.Kind != manifest.Dir {
			c.addGone(gone{dir: vfs.Join(dir, name), all: true})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what was placed in %q: %w", dir, err)
	}
	appeared("", true)
	return nil
}

func (c *comparison) reportAll(differs []Difference) error {
	if len(differs) == 0 {
		return nil
	}
	c.reporting.Lock()
	defer c.reporting.Unlock()
	for i := range differs {
		if err := c.report(differs[i]); err != nil {
			return err
		}
	}
	return nil
}

// lost handles a directory that was listed by its parent and now cannot be read: gone, replaced, or a Problem.
func (c *comparison) lost(dir string, err error) error {
	if !vfs.NoSuchDir(err) {
		c.problem(dir, err)
		return nil
	}
	if dir == c.from {
		c.addGone(gone{dir: dir, all: true})
		return nil
	}
	parent, name := vfs.Split(dir)
	now, err := c.look(parent, name)
	switch {
	case err != nil:
		c.problem(dir, err)
	case now.Kind == manifest.Dir:
		// It went and came while we looked: whatever did that is hinted at by the watcher.
		c.problem(dir, errReplaced)
	case now.Kind == manifest.Absent && !now.Other:
		c.addGone(gone{dir: parent, names: []string{name}})
	default:
		c.addGone(gone{dir: dir, all: true})
		return c.reportReplaced(parent, name, now)
	}
	return nil
}

// look stats name in parent, which may be gone as well.
func (c *comparison) look(parent, name string) (place.Stat, error) {
	fd, err := vfs.OpenBeneath(c.root, parent)
	if vfs.NoSuchDir(err) {
		return place.Stat{}, nil
	}
	if err != nil {
		return place.Stat{}, err
	}
	defer unix.Close(fd)
	in, err := vfs.StatAt(fd, name)
	return place.StatOf(in), err
}

func (c *comparison) reportReplaced(parent, name string, now place.Stat) error {
	d := Difference{Path: vfs.Join(parent, name), Stat: now}
	err := c.placed.Children(parent, func(child string, p place.Placed) error {
		if child == name {
			d.Placed = p
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what was placed in %q: %w", parent, err)
	}
	return c.reportAll([]Difference{d})
}

func (c *comparison) addGone(g gone) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = append(c.gone, g)
}

// reportGone reports what the workers, which have ended, found missing.
func (c *comparison) reportGone(ctx context.Context) error {
	for _, g := range c.gone {
		names := g.names
		err := c.placed.Children(g.dir, func(name string, p place.Placed) error {
			for len(names) > 0 && names[0] < name {
				names = names[1:]
			}
			if !g.all && (len(names) == 0 || names[0] != name) {
				return nil
			}
			return c.goneTree(ctx, vfs.Join(g.dir, name), p)
		})
		if err != nil {
			return fmt.Errorf("report what is gone from %q: %w", g.dir, err)
		}
	}
	return nil
}

// goneTree reports path and, before it, all that was placed beneath it.
func (c *comparison) goneTree(ctx context.Context, path string, p place.Placed) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Stat.Kind == manifest.Absent || c.ignored("", path) {
		return nil
	}
	if p.Stat.Kind == manifest.Dir {
		err := c.placed.Children(path, func(name string, child place.Placed) error {
			return c.goneTree(ctx, vfs.Join(path, name), child)
		})
		if err != nil {
			return err
		}
	}
	return c.report(Difference{Path: path, Placed: p})
}
