package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// SetAside moves everything in a binding that is not open, and that the manifest does not want just there, to the
// directory aside, on the same mount, under its path: files with another content, and whatever the manifest does not
// name. Afterwards the binding can be taken up without anything of it being proposed to the group. It returns how
// many objects were moved. Whoever writes to the binding meanwhile may find a file moved, never lost.
func SetAside(root, aside string, manifestView kv.Reader) (moved int, err error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return 0, fmt.Errorf("set aside: %w", err)
	}
	defer r.Close()
	s := &asideWalk{root: r, path: root, aside: aside, view: manifestView}
	if err := s.dir(""); err != nil {
		return s.moved, fmt.Errorf("set aside from %s: %w", root, err)
	}
	return s.moved, nil
}

type asideWalk struct {
	root  *os.Root
	path  string
	aside string
	view  kv.Reader
	moved int
}

func (s *asideWalk) dir(rel string) error {
	d, err := s.root.Open(orDot(rel))
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, name := range names {
		path := manifest.Join(rel, name)
		if reserved(path) {
			continue
		}
		if err := s.entry(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func orDot(rel string) string {
	if rel == "" {
		return "."
	}
	return rel
}

func (s *asideWalk) entry(path string) error {
	info, err := s.root.Lstat(path)
	if err != nil {
		return err
	}
	var want manifest.Node
	if manifest.ValidPath(path) {
		if want, _, err = manifest.Get(s.view, path); err != nil {
			return err
		}
	}
	switch mode := info.Mode(); {
	case mode.IsDir() && want.Kind == manifest.Dir:
		return s.dir(path)
	case mode.IsRegular() && want.Kind == manifest.File && info.Size() == want.Size:
		same, err := s.holds(path, want.Hash)
		if err != nil || same {
			return err
		}
	case mode.Type() == fs.ModeSymlink && want.Kind == manifest.Symlink:
		target, err := s.root.Readlink(path)
		if err != nil || target == want.Target {
			return err
		}
	}
	return s.move(path)
}

func (s *asideWalk) holds(path string, want manifest.Hash) (bool, error) {
	f, err := s.root.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.Copy(h, f); err != nil {
		return false, err
	}
	var sum manifest.Hash
	h.Sum(sum[:0])
	return sum == want, nil
}

// move renames without replacing anything: what an interrupted attempt has moved stays where it is.
func (s *asideWalk) move(path string) error {
	to := filepath.Join(s.aside, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	from, err := s.root.Open(orDot(parentOf(path)))
	if err != nil {
		return err
	}
	defer from.Close()
	for n := 1; ; n++ {
		err := unix.Renameat2(int(from.Fd()), filepath.Base(path), unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			if err == nil {
				s.moved++
			}
			return err
		}
		to = filepath.Join(s.aside, fmt.Sprintf("%s.%d", path, n))
	}
}

func parentOf(path string) string {
	dir, ok := manifest.Parent(path)
	if !ok {
		return ""
	}
	return dir
}
