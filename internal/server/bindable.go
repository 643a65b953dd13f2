package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// checkHere makes sure that a directory can be bound on this node, to a group with that root marker ("": one that is not
// made yet; anyMark: whatever the directory carries is taken over); one that does not exist is made when it is. Nothing
// is written to find that out: the directory may be part of another binding of this node, which is for the control group
// to refuse.
func (n *node) checkHere(dir, mark string) error {
	if inside(dir, n.data.path) || inside(n.data.path, dir) {
		return unbindable(dir, "it overlaps the node's data directory "+n.data.path, "choose another directory")
	}
	at, st, err := nearest(dir)
	if err != nil {
		return unbindable(dir, reason(err), "give a directory that lockstep may read and write there")
	}
	if real, err := filepath.EvalSymlinks(at); err != nil {
		return unbindable(dir, "it leads through a symbolic link that cannot be followed: "+reason(err), "bind the directory itself")
	} else if real != at {
		return unbindable(dir, "it leads through a symbolic link to "+real+dir[len(at):], "bind that directory itself")
	}
	if !st.IsDir() {
		return unbindable(dir, at+" is not a directory", "give a directory")
	}
	if err := checkWritable(dir, at); err != nil {
		return err
	}
	if err := checkNotInData(filepath.Clean(dir)); err != nil {
		return err
	}
	return n.checkUnheld(filepath.Clean(dir), mark)
}

// anyMark stands for every root marker: no group's is like it.
const anyMark = "*"

// checkUnheld refuses a directory that another node keeps, and one that carries another group's root marker, or is part of
// a directory with a root marker: the node that keeps that may be stopped just now.
func (n *node) checkUnheld(dir, mark string) error {
	own := n.ownPaths()
	for at := dir; ; at = filepath.Dir(at) {
		if own[at] {
			return nil
		}
		if err := place.Held(at); err != nil {
			return errHeld("bind", dir, err)
		}
		if was := place.Marked(at); was != "" && at != dir {
			return &api.Error{Code: api.CodeConflict, Op: "bind", Subject: dir, Why: "it is part of " + at + ", which carries the root marker of a group (" + was + ")",
				Hint: "choose another directory; " + unmarkHint(at)}
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	if was := place.Marked(dir); was != "" && was != mark && mark != anyMark {
		return &api.Error{Code: api.CodeConflict, Op: "bind", Subject: dir, Why: "it carries the root marker of another group (" + was + ")",
			Hint: "if no node keeps it any more, say so by removing " + filepath.Join(dir, manifest.Reserved, "root") + "; else choose another directory"}
	}
	return nil
}

// ownPaths are the directories of this node's holdings, those that are being released included.
func (n *node) ownPaths() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	own := map[string]bool{}
	for _, h := range n.holdings {
		if h.path != "" {
			own[filepath.Clean(h.path)] = true
		}
	}
	return own
}

// errHeld is a directory that another node of this machine keeps.
func errHeld(op, subject string, why error) error {
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: subject, Why: why.Error(),
		Hint: "choose another directory, or have the other node let it go: unbind it there, or stop that node"}
}

func unbindable(dir, why, hint string) error {
	return &api.Error{Code: api.CodeUsage, Op: "bind", Subject: dir, Why: why, Hint: hint}
}

// nearest is as much of a path as exists, links not followed at its end.
func nearest(dir string) (at string, st fs.FileInfo, err error) {
	for at = filepath.Clean(dir); ; at = filepath.Dir(at) {
		st, err = os.Lstat(at)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) || at == filepath.Dir(at) {
			return at, st, err
		}
	}
}

// checkWritable makes sure that what is kept in step can be written to at, which is dir or the next directory above it
// that exists.
func checkWritable(dir, at string) error {
	what := "it cannot be written to: "
	if at != dir {
		what = "it does not exist and cannot be made in " + at + ": "
	}
	var on unix.Statfs_t
	err := unix.Faccessat(unix.AT_FDCWD, at, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	if err == nil {
		err = unix.Statfs(at, &on)
	}
	if err != nil {
		return unbindable(dir, what+reason(err), "give a directory that the user who runs the node may read and write")
	}
	switch on.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.DEVPTS_SUPER_MAGIC:
		return unbindable(dir, what+"the kernel keeps no files there", "give a directory on a file system for files")
	}
	return nil
}

// boundTime bounds how long those who bind a directory are kept until it is there.
const boundTime = 5 * time.Second

// awaitBound waits until the bindings of a group that which chooses are open on the nodes that are up, so that whoever asked
// for them finds the directories. What takes longer, or cannot be opened, is left to the status.
func (n *node) awaitBound(ctx context.Context, group string, which func(control.Member) bool) {
	g, ok := n.ctl.state().GroupNamed(group)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, boundTime)
	defer cancel()
	each(g.Members, func(m control.Member) bool {
		return which(m) && n.waitPlaced(ctx, g, m, 0, func() bool { return n.memberStill(g, m) && n.isUp(ctx, m.Node) })
	})
}
