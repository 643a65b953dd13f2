package vfs

import (
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Root is a directory under which everything is done relative to descriptors opened beneath it. It keeps its
// meaning when the directory is renamed; Check tells. Safe for concurrent use.
type Root struct {
	path    string
	fd      int
	info    Info
	closing sync.Once
}

// Directory is an open directory beneath a Root. Close it when done; its descriptor must not be used after that. A directory
// that was renamed away (even out of the root) meanwhile is still what the descriptor means.
type Directory struct{ fd int }

// OpenRoot opens the directory at path (whose own symlinks are followed: the operator chose it).
func OpenRoot(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open root", Path: path, Err: err}
	}
	info, err := StatFd(fd)
	if err == nil {
		var probe int
		if probe, err = OpenBeneath(fd, ""); err == nil {
			unix.Close(probe)
		} else {
			err = fmt.Errorf("open beneath %s (needs Linux 5.6): %w", path, err)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Root{path: path, fd: fd, info: info}, nil
}

// Fd is the root's descriptor, valid until Close.
func (r *Root) Fd() int { return r.fd }

// Dev is the device of the file system that the root is on.
func (r *Root) Dev() uint64 { return r.info.Dev }

// Check says whether the root's path still leads to the directory that was opened: an error means that it was
// removed, replaced or unmounted.
func (r *Root) Check() error {
	var st unix.Stat_t
	if err := unix.Stat(r.path, &st); err != nil {
		return &fs.PathError{Op: "stat root", Path: r.path, Err: err}
	}
	if in := FromStat(&st); in.Ino != r.info.Ino || in.Dev != r.info.Dev || in.Kind != Dir {
		return fmt.Errorf("root %s is another directory than the one opened: %w", r.path, unix.ESTALE)
	}
	return nil
}

// OpenDir opens the directory rel beneath the root.
func (r *Root) OpenDir(rel string) (*Directory, error) {
	fd, err := OpenBeneath(r.fd, rel)
	if err != nil {
		return nil, err
	}
	return &Directory{fd}, nil
}

// Stat looks at rel; an entry that is not there, or whose parent is not, gives the zero Info. A parent that is
// not a directory (a symlink, a file) counts as not there.
func (r *Root) Stat(rel string) (Info, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		if NoSuchDir(err) {
			return Info{}, nil
		}
		return Info{}, err
	}
	defer d.Close()
	return StatAt(d.fd, name)
}

// Open opens the regular file rel for reading: see OpenFileAt.
func (r *Root) Open(rel string) (*os.File, Info, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		return nil, Info{}, err
	}
	defer d.Close()
	return OpenFileAt(d.fd, name)
}

// Readlink returns the raw target of the symlink rel.
func (r *Root) Readlink(rel string) (string, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return ReadlinkAt(d.fd, name)
}

// Close closes the root, once. Directories stay valid until they are closed.
func (r *Root) Close() (err error) {
	r.closing.Do(func() {
		if err = unix.Close(r.fd); err != nil {
			err = &fs.PathError{Op: "close root", Path: r.path, Err: err}
		}
	})
	return err
}

// Fd is the directory's descriptor for *at calls, open for reading.
func (d *Directory) Fd() int { return d.fd }

// Close gives the directory back.
func (d *Directory) Close() {
	unix.Close(d.fd) // read only: nothing to lose
	d.fd = -1
}
