package logstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is the directory of a store's segments.
type Disk interface {
	// List names the files that are there.
	List() ([]string, error)
	Open(name string) (File, error)
	// Create makes a file of size zero bytes that take their space, durably, and its name too. If written is set they
	// are written as well: a sync of bytes that overwrite written ones waits for no journal. After an error there is
	// no such file.
	Create(name string, size int64, written bool) (File, error)
	Remove(name string) error
	Close() error
}

// File is one segment.
type File interface {
	// ReadAt is io.ReaderAt's.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes inside the file's size without waiting for the disk.
	WriteAt(p []byte, off int64) (int, error)
	// WriteSync writes inside the file's size; what was written is durable when it returns.
	WriteSync(p []byte, off int64) error
	// Sync makes everything that was written before durable.
	Sync() error
	Size() (int64, error)
	Close() error
}

// unfinished ends the name of a file that is still being filled.
const unfinished = ".new"

// osDisk is a directory of the operating system.
type osDisk struct {
	path string
	dir  *os.File
}

// OpenDisk opens a directory, which is made if it is missing.
func OpenDisk(path string) (Disk, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &osDisk{path, dir}, nil
}

// ReadDisk opens a directory, which must exist, to look at it: whatever would change it is refused. read, if it is not
// nil, is told of every read how many bytes came; its error ends that read.
func ReadDisk(path string, read func(n int) error) (Disk, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if read == nil {
		read = func(int) error { return nil }
	}
	return &readDisk{osDisk{path, dir}, read}, nil
}

var errReadOnly = errors.New("the directory was opened to be read")

type readDisk struct {
	osDisk
	read func(n int) error
}

func (d *readDisk) Open(name string) (File, error) {
	f, err := os.Open(filepath.Join(d.path, name))
	if err != nil {
		return nil, err
	}
	return &readFile{osFile{f: f}, d.read}, nil
}

func (d *readDisk) Create(name string, _ int64, _ bool) (File, error) {
	return nil, fmt.Errorf("create %s: %w", name, errReadOnly)
}

func (d *readDisk) Remove(name string) error { return fmt.Errorf("remove %s: %w", name, errReadOnly) }

type readFile struct {
	osFile
	read func(n int) error
}

func (f *readFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.osFile.ReadAt(p, off)
	if stop := f.read(n); stop != nil {
		return n, stop
	}
	return n, err
}

func (f *readFile) WriteAt([]byte, int64) (int, error) { return 0, f.refuse() }
func (f *readFile) WriteSync([]byte, int64) error      { return f.refuse() }
func (f *readFile) Sync() error                        { return f.refuse() }

func (f *readFile) refuse() error { return fmt.Errorf("write %s: %w", f.f.Name(), errReadOnly) }

func (d *osDisk) List() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d *osDisk) Open(name string) (File, error) {
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

// zeroChunk is how much is written before it is waited for, so that other writers' syncs get in between.
const zeroChunk = 512 << 10

func (d *osDisk) Create(name string, size int64, written bool) (File, error) {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path+unfinished, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err = fill(f, size, written); err == nil {
		if err = os.Rename(path+unfinished, path); err == nil {
			err = d.dir.Sync()
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.RemoveAll(path+unfinished), os.RemoveAll(path))
	}
	return &osFile{f: f}, nil
}

// fill reserves the space first, so that a full disk is met before anything is written.
func fill(f *os.File, size int64, written bool) error {
	fd := int(f.Fd())
	err := unix.Fallocate(fd, 0, 0, size)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	zeros := make([]byte, zeroChunk)
	for at := int64(0); at < size && (written || err != nil); at += zeroChunk {
		n := min(zeroChunk, size-at)
		if _, err := f.WriteAt(zeros[:n], at); err != nil {
			return err
		}
		flags := unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(fd, at, n, flags); err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("write %s: %w", f.Name(), err)
		}
	}
	return f.Sync()
}

func (d *osDisk) Remove(name string) error { return os.Remove(filepath.Join(d.path, name)) }

func (d *osDisk) Close() error { return d.dir.Close() }

type osFile struct {
	f       *os.File
	noDSync bool // the file system does not know RWF_DSYNC
}

func (o *osFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, off) }
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }
func (o *osFile) Sync() error                              { return o.f.Sync() }
func (o *osFile) Close() error                             { return o.f.Close() }

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// WriteSync asks for the write and its sync in one call where the file system can.
func (o *osFile) WriteSync(p []byte, off int64) error {
	if !o.noDSync {
		n, err := unix.Pwritev2(int(o.f.Fd()), [][]byte{p}, off, unix.RWF_DSYNC)
		switch {
		case err == nil && n == len(p):
			return nil
		case err == nil: // cut short: what is left is written below, and the sync covers all of it
			p, off = p[n:], off+int64(n)
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			o.noDSync = true
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("write %s: %w", o.f.Name(), err)
		}
	}
	if _, err := o.f.WriteAt(p, off); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(o.f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", o.f.Name(), err)
	}
	return nil
}
