package logstore

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// zeroedFS writes zeros into a new write-ahead log before Pebble uses it. A sync of bytes that overwrite
// others then waits for the data alone; one of bytes that make the file longer waits for the file system's
// journal, too, which all files on it share. Pebble reads zeros as the end of a log, and uses old logs again,
// so that this happens a few times in the life of a store.
type zeroedFS struct {
	vfs.FS
	size int64
}

// Create implements vfs.FS.
func (z zeroedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := z.FS.Create(name, category)
	if err != nil || !strings.HasSuffix(name, ".log") {
		return f, err
	}
	if err := z.fill(f); err != nil {
		// Without it the log is slower, not wrong: a full disk is met when something is to be written.
		return f, nil
	}
	return f, nil
}

func (z zeroedFS) fill(f vfs.File) error {
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < z.size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros, at); err != nil {
			return err
		}
	}
	return f.Sync()
}
