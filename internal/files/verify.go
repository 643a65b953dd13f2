package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// Difference is what Verify found at a path.
type Difference struct {
	Path   string
	What   string
	Damage bool // content changed while size, mtime and ctime did not
	Unread bool // nobody knows whether it differs: What says why it cannot be read
}

// Verification is what a Verify read.
type Verification struct {
	Files, Bytes uint64
	Found        []Difference // at most 1000
	More         uint64       // beyond those
	Repaired     uint64       // damaged files that are about to be replaced from another copy
}

const differencesMax = 1000

func (v *Verification) add(d Difference) {
	if len(v.Found) < differencesMax {
		v.Found = append(v.Found, d)
	} else {
		v.More++
	}
}

// Verify reads every file of the binding and compares everything with the manifest as it is now. Changes that
// are under way show up as differences.
//
// With repair, damaged files are kept aside and the placer is asked to replace them, from another copy here or
// from another member; Verify does not wait for that. Other differences are looked at, as if the watcher had
// told of them: local changes that were missed are proposed.
func (a *Agent) Verify(ctx context.Context, repair bool) (Verification, error) {
	var out Verification
	view, err := a.cfg.Log.View()
	if err != nil {
		return out, err
	}
	defer view.Close()
	err = manifest.Walk(view, "", "", func(path string, n manifest.Node) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		what, damage, err := a.verifyPath(path, &n, &out)
		d := difference(path, what, damage, err)
		if d.What != "" {
			out.add(d)
		}
		switch {
		case !repair || d.What == "":
			return nil
		case d.Damage:
			return a.repair(path, &n, &out)
		}
		a.lookSoon(path)
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("verify: %w", err)
	}
	if out.Repaired > 0 {
		a.board.nudge()
	}
	_, err = scan.Walk(ctx, a.root.Fd(), "", scan.Options{Ignore: a.cfg.Ignore}, func(dir string, entries []scan.Entry) error {
		for i := range entries {
			path := vfs.Join(dir, entries[i].Name)
			_, ok, err := manifest.Get(view, path)
			if err != nil {
				return err
			}
			if !ok && !entries[i].Stat.Other {
				out.add(Difference{Path: path, What: "is not in the group"})
				if repair {
					a.lookSoon(path)
				}
			}
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("verify: %w", err)
	}
	return out, nil
}

// difference is what is said of a path after verifyPath; What is "" if it is as it should be.
func difference(path, what string, damage bool, err error) Difference {
	var e *fs.PathError
	switch {
	case err == nil:
		return Difference{Path: path, What: what, Damage: damage}
	case errors.Is(err, fs.ErrNotExist):
		return Difference{Path: path, What: "is missing"}
	case errors.As(err, &e):
		err = e.Err // the path is said anyway
	}
	return Difference{Path: path, What: err.Error(), Unread: true}
}

// repair has a damaged file replaced by what the manifest says. If the path changes, or has changed since it was
// read, it is looked at instead. An error means that the placed table failed.
func (a *Agent) repair(path string, n *manifest.Node, out *Verification) error {
	if !a.board.claimIdle(path) {
		a.lookSoon(path)
		return nil
	}
	queued, err := a.distrustOne(path, n)
	if queued {
		a.rechecks.add(path, 0)
		out.Repaired++
	}
	a.board.lookDone(path, time.Time{})
	return err
}

// distrustOne makes the placed record of a damaged file, which is claimed, one that the placer may replace.
func (a *Agent) distrustOne(path string, n *manifest.Node) (queued bool, err error) {
	rec, err := a.table.get(path)
	if err != nil {
		return false, err
	}
	h, in, err := a.hashFile(path) // again: now nobody else of ours touches the path
	if err != nil {
		a.status.problem(path, fmt.Errorf("repair: %w", err))
		return false, nil
	}
	s := place.StatOf(in)
	if rec.Hash != n.Hash || h == n.Hash || !scan.Same(s, rec.Stat) {
		return false, nil
	}
	if s.Size > 0 {
		if err := a.keepAside(path); err != nil {
			a.status.problem(path, fmt.Errorf("repair: keep the damaged content aside: %w", err))
			return false, nil
		}
	}
	a.log.Warn("content is damaged and will be replaced", "path", path)
	return true, a.recordOne(path, rec.Stat.Kind, record{Placed: place.Placed{Stat: s}, Hash: h})
}

// verifyPath says how a path differs from n; "" is not at all.
func (a *Agent) verifyPath(path string, n *manifest.Node, out *Verification) (what string, damage bool, err error) {
	in, err := a.root.Stat(path)
	if err != nil {
		return "", false, err
	}
	s := place.StatOf(in)
	switch {
	case s.Kind != n.Kind:
		return fmt.Sprintf("is %v, should be %v", s.Kind, n.Kind), false, nil
	case n.Kind == manifest.Symlink:
		target, err := a.root.Readlink(path)
		if err == nil && target != n.Target {
			what = fmt.Sprintf("points to %q, should be %q", target, n.Target)
		}
		return what, false, err
	case n.Kind == manifest.File:
		h, now, err := a.hashFile(path)
		if err != nil {
			return "", false, err
		}
		out.Files++
		out.Bytes += uint64(now.Size)
		if h != n.Hash {
			rec, err := a.table.get(path)
			damage = err == nil && rec.Hash == n.Hash && scan.Same(place.StatOf(now), rec.Stat)
			return "content differs", damage, err
		}
	}
	if !a.looksAs(&s, n) {
		return "mode, owner or time differs", false, nil
	}
	return "", false, nil
}
