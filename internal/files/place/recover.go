package place

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// Kept is something of a user's in Work/kept, to be looked at and removed by hand.
type Kept struct {
	Path   string // absolute
	Origin string // where it was, relative to the root; "" if that is not known any more
}

// Recover brings the work directory in order after a crash: what was prepared is removed, what had been moved
// out of its place goes back, or to Work/kept if its name is taken or not known. It returns everything in
// Work/kept, also from earlier times. The files it puts back have a new ctime.
func (p *Placer) Recover() ([]Kept, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.root.Check(); err != nil {
		return nil, err
	}
	names, err := list(p.work)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(p.workDir, "place"), err)
	}
	plan, err := p.readIntent()
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", p.workDir, err)
	}
	origins := map[string]string{}
	for _, e := range names {
		_, seq, _, ours := parseWorkName(e.Name)
		if !ours {
			continue // the intent, or nothing that we made
		}
		p.seq = max(p.seq, seq+1)
		kept, origin, err := p.recoverOne(e, plan)
		if err != nil {
			return nil, fmt.Errorf("recover %s: %w", filepath.Join(p.workDir, "place", e.Name), err)
		}
		if kept != "" {
			origins[kept] = origin
		}
	}
	out, err := p.listKept(origins)
	p.recovered = err == nil
	return out, err
}

// list is vfs.Lister.List on a descriptor of its own.
func list(dirfd int) ([]vfs.Entry, error) {
	fd, err := vfs.OpenBeneath(dirfd, "")
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var l vfs.Lister
	return l.List(fd)
}

func (p *Placer) listKept(origins map[string]string) ([]Kept, error) {
	entries, err := list(p.kept)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", filepath.Join(p.workDir, "kept"), err)
	}
	var out []Kept
	for _, e := range entries {
		path := filepath.Join(p.workDir, "kept", e.Name)
		out = append(out, Kept{Path: path, Origin: origins[path]})
		delete(origins, path)
	}
	for path, origin := range origins { // what could not even be moved to kept
		out = append(out, Kept{Path: path, Origin: origin})
	}
	return out, nil
}

// parseWorkName splits a name in Work/place. ino is 0 for those that have none.
func parseWorkName(name string) (prefix string, seq, ino uint64, ok bool) {
	for _, prefix = range []string{prefixNew, prefixOld, prefixSwap, prefixBack} {
		rest, found := strings.CutPrefix(name, prefix)
		if !found {
			continue
		}
		number, inode, two := strings.Cut(rest, "-")
		seq, err := strconv.ParseUint(number, 16, 64)
		if err == nil && two {
			ino, err = strconv.ParseUint(inode, 16, 64)
		}
		return prefix, seq, ino, err == nil && two == (prefix == prefixSwap || prefix == prefixBack)
	}
	return "", 0, 0, false
}

// recoverOne deals with one entry of Work/place. If it is kept, kept says where and origin where it was from.
func (p *Placer) recoverOne(e vfs.Entry, plan map[uint64]intended) (kept, origin string, err error) {
	prefix, seq, ino, _ := parseWorkName(e.Name)
	if e.Err != nil {
		return "", "", e.Err
	}
	if prefix == prefixNew || prefix == prefixSwap && e.Info.Ino == ino {
		return "", "", remove(p.work, e.Name, e.Info.Kind)
	}
	in, known := plan[seq]
	dir, name := vfs.Split(in.path)
	if !known {
		return p.keep(e.Name, e.Name), "", nil
	}
	if prefix == prefixBack && e.Info.Ino == ino {
		return p.dropFresh(e.Name, name, in.fresh(ino, e.Info)), in.path, nil
	}
	fd, err := vfs.OpenBeneath(p.root.Fd(), dir)
	if vfs.NoSuchDir(err) {
		return p.keep(e.Name, name), in.path, nil
	}
	if err != nil {
		return "", "", err
	}
	defer unix.Close(fd)
	now, err := vfs.StatAt(fd, name)
	switch {
	case err != nil:
		return "", "", err
	case prefix == prefixOld && now.Ino == e.Info.Ino && now.Dev == e.Info.Dev:
		return "", "", remove(p.work, e.Name, e.Info.Kind) // a second name of what is still in place
	case prefix == prefixOld:
		return p.backToFree(fd, name, e.Name, e.Info.Kind), in.path, nil
	case prefix == prefixSwap:
		return p.putBack(fd, name, seq, in.fresh(ino, now)), in.path, nil
	}
	return p.bringBack(fd, name, e.Name, in.fresh(ino, now)), in.path, nil
}

// dropFresh drops what had been put in place and was taken out again, unless somebody changed it there.
func (p *Placer) dropFresh(back, name string, fresh vfs.Info) (kept string) {
	h, why := p.hold(p.work, back, fresh)
	defer h.release()
	if why != "" || remove(p.work, back, fresh.Kind) != nil {
		return p.keep(back, name)
	}
	return ""
}
