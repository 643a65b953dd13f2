package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
)

// dataDir is a node's data directory, held by a lock for as long as the process lives.
type dataDir struct {
	path string
	lock *os.File
}

func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, dataDirError(path, err)
	}
	if st, err := os.Stat(path); err != nil || !st.IsDir() {
		return nil, dataDirError(path, errors.Join(err, errors.New("not a directory")))
	}
	if err := checkOurs(path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, dataDirError(path, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(inUse(path), lock.Close())
	}
	return &dataDir{path: path, lock: lock}, nil
}

// checkFree refuses a data directory that another process uses, and makes nothing. What else may be wrong with it is
// for openDataDir to find.
func checkFree(path string) error {
	lock, err := os.Open(filepath.Join(path, "lock"))
	if err != nil {
		return nil
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return inUse(path)
	}
	return nil
}

func inUse(path string) error {
	return &api.Error{Code: api.CodeUnavailable, Op: "serve", Subject: path, Why: "another lockstep process uses this data directory",
		Hint: "stop it, or give this one a directory of its own with --data"}
}

// checkOurs refuses a directory that holds something but is no data directory: somebody's files, most likely one
// of the directories that are to be kept in step.
func checkOurs(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return dataDirError(path, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "lock", "identity", initFile, "lost+found":
			return nil
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Op: "serve", Subject: path, Why: "it is not empty and not a data directory",
		Hint: "give an empty directory, or one that does not exist, with --data"}
}

func dataDirError(path string, err error) error {
	hint := "give a directory that this user may write to with --data"
	if errors.Is(err, fs.ErrPermission) {
		hint = "run as a user who may write there, or choose another directory with --data"
	}
	return &api.Error{Code: api.CodeFailed, Op: "serve", Subject: path, Why: fmt.Sprintf("cannot use the data directory: %v", err), Hint: hint}
}

func (d *dataDir) sub(name string) string { return filepath.Join(d.path, name) }

func (d *dataDir) Close() error { return d.lock.Close() }
