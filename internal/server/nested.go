package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// A data directory in a binding would be kept in step, its private key included, and a binding in a data directory would
// lose its files with it. A node knows of its own directories; of other nodes of the machine it knows what they leave on
// disk: a binding's root marker, a data directory's identity.

// nestedDirs and nestedNames bound the search for data directories below a directory: how many directories are read, those
// near the top first, and how many names of each.
const (
	nestedDirs  = 5000
	nestedNames = 10000
)

// checkOutside refuses a data directory that is part of a binding, whether or not anybody keeps that now. Nothing is made.
func checkOutside(data string) error {
	abs, err := filepath.Abs(data)
	if err != nil {
		return dataDirError(data, err)
	}
	at, _, err := nearest(abs)
	if err != nil {
		return dataDirError(data, err)
	}
	real, err := filepath.EvalSymlinks(at)
	if err != nil {
		return dataDirError(data, err)
	}
	for up := real; ; up = filepath.Dir(up) {
		if was := place.Marked(up); was != "" {
			return &api.Error{Code: api.CodeConflict, Op: "serve", Subject: data,
				Why:  fmt.Sprintf("it is part of %s, which is kept in step (%s): the node's private key would be copied to other servers", up, was),
				Hint: "choose a data directory outside of it with --data; " + unmarkHint(up)}
		}
		if up == filepath.Dir(up) {
			return nil
		}
	}
}

func unmarkHint(dir string) string {
	return "if no node keeps " + dir + " any more, say so by removing " + filepath.Join(dir, manifest.Reserved, "root")
}

// checkNotInData refuses a directory that is part of a node's data directory, or that holds one.
func checkNotInData(dir string) error {
	for up := dir; ; up = filepath.Dir(up) {
		if access.Present(up) {
			return unbindable(dir, "it is part of "+up+", which is a node's data directory", "choose another directory")
		}
		if up == filepath.Dir(up) {
			break
		}
	}
	if data := dataBelow(dir); data != "" {
		return unbindable(dir, "it holds "+data+", which is a node's data directory: that node's private key would be copied to other servers",
			"choose another directory, or move the data directory away while its node is stopped")
	}
	return nil
}

// dataBelow finds a data directory below dir, "" if it sees none. What cannot be read is passed over: it cannot be kept in
// step either.
func dataBelow(dir string) string {
	todo := []string{dir}
	for read := 0; len(todo) > 0 && read < nestedDirs; read++ {
		at := todo[0]
		todo = todo[1:]
		if at != dir && access.Present(at) {
			return at
		}
		todo = append(todo, subdirs(at, nestedDirs-read-len(todo))...)
	}
	return ""
}

// subdirs are up to most directories in a directory.
func subdirs(dir string, most int) (out []string) {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.ReadDir(nestedNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	for _, e := range names {
		if e.IsDir() && len(out) < most {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
