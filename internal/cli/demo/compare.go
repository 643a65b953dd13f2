package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// object is all that two trees must agree on for one path.
type object struct {
	mode     fs.FileMode
	uid, gid uint32
	mtime    int64 // ns
	size     int64 // files
	target   string
	sum      [sha256.Size]byte
}

// survey walks a tree and reads everything, except Lockstep's own directory at its top.
func survey(ctx context.Context, root string) (map[string]object, error) {
	out := map[string]object{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if rel == ".lockstep" {
			return fs.SkipDir
		}
		out[rel], err = look(path, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	return out, nil
}

func look(path string, d fs.DirEntry) (object, error) {
	info, err := d.Info()
	if err != nil {
		return object{}, err
	}
	o := object{mode: info.Mode(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		o.uid, o.gid = st.Uid, st.Gid
	}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		o.target, err = os.Readlink(path)
	case 0:
		o.size = info.Size()
		o.sum, err = hashFile(path)
	}
	return o, err
}

func hashFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// differences lists how b differs from a, sorted by path.
func differences(a, b map[string]object) []string {
	var out []string
	for path, x := range a {
		y, ok := b[path]
		switch {
		case !ok:
			out = append(out, path+": missing")
		case x.mode.Type() != y.mode.Type():
			out = append(out, path+": another kind")
		case x.size != y.size || x.sum != y.sum:
			out = append(out, path+": other content")
		case x.target != y.target:
			out = append(out, path+": another target")
		case x.mode != y.mode:
			out = append(out, fmt.Sprintf("%s: mode %v instead of %v", path, y.mode, x.mode))
		case x.uid != y.uid || x.gid != y.gid:
			out = append(out, fmt.Sprintf("%s: owner %d:%d instead of %d:%d", path, y.uid, y.gid, x.uid, x.gid))
		case x.mtime != y.mtime:
			out = append(out, fmt.Sprintf("%s: mtime differs by %d ns", path, y.mtime-x.mtime))
		}
	}
	for path := range b {
		if _, ok := a[path]; !ok {
			out = append(out, path+": too much")
		}
	}
	slices.Sort(out)
	return out
}

// compareAll surveys all roots at the same time and returns each one's differences from the first, and the
// number of paths in the first.
func compareAll(ctx context.Context, roots []string) (diffs [][]string, paths int, err error) {
	surveys := make([]map[string]object, len(roots))
	errs := make([]error, len(roots))
	var wg sync.WaitGroup
	for i, root := range roots {
		wg.Go(func() { surveys[i], errs[i] = survey(ctx, root) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, 0, err
	}
	for _, s := range surveys[1:] {
		diffs = append(diffs, differences(surveys[0], s))
	}
	return diffs, len(surveys[0]), nil
}
