package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// source finds the directory to copy: the given one, the Go installation's sources, or "" for none.
func source(ctx context.Context, given string) (dir string, err error) {
	if given != "" {
		info, err := os.Stat(given)
		if err != nil {
			return "", fmt.Errorf("--dir: %w", err)
		}
		if !info.IsDir() {
			return "", fmt.Errorf("--dir %s is not a directory", given)
		}
		return filepath.EvalSymlinks(given)
	}
	var roots []string
	if out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output(); err == nil {
		roots = append(roots, strings.TrimSpace(string(out)))
	}
	for _, root := range append(roots, "/usr/local/go", "/usr/lib/go") {
		src, err := filepath.EvalSymlinks(filepath.Join(root, "src"))
		if err != nil {
			continue
		}
		if info, err := os.Stat(src); err == nil && info.IsDir() && root != "" {
			return src, nil
		}
	}
	return "", nil
}

// copyTree copies regular files, directories and symlinks with modes and times, and skips the rest. step is
// told after each file.
func copyTree(ctx context.Context, from, to string, step func(tally)) (tally, error) {
	var sum tally
	type dirInfo struct {
		path string
		info fs.FileInfo
	}
	var dirs []dirInfo
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if rel == ".lockstep" { // another binding's own
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch info.Mode().Type() {
		case fs.ModeDir:
			dirs = append(dirs, dirInfo{target, info})
			if rel == "." {
				return nil
			}
			return os.Mkdir(target, 0o700)
		case fs.ModeSymlink:
			return copyLink(path, target, info)
		case 0:
			n, err := copyFile(path, target, info)
			sum.files++
			sum.bytes += uint64(n)
			step(sum)
			return err
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- { // children first, their making changes the times
		err = setMeta(dirs[i].path, dirs[i].info)
	}
	if err != nil {
		return sum, fmt.Errorf("copy %s: %w", from, err)
	}
	return sum, nil
}

func copyFile(from, to string, info fs.FileInfo) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return n, err
	}
	return n, setMeta(to, info)
}

func copyLink(from, to string, info fs.FileInfo) error {
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, to); err != nil {
		return err
	}
	at := unix.NsecToTimespec(info.ModTime().UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

func setMeta(path string, info fs.FileInfo) error {
	return errors.Join(os.Chmod(path, info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)), os.Chtimes(path, time.Time{}, info.ModTime()))
}

// generate makes a tree of small files below dir, the same one for the same seed.
func generate(ctx context.Context, dir string, files int, seed uint64, step func(tally)) (tally, error) {
	var sum tally
	random := rand.New(rand.NewPCG(seed, seed))
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte('a' + random.IntN(26))
	}
	for i := range files {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%64), fmt.Sprintf("e%02d", i/64%32))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return sum, fmt.Errorf("generate files: %w", err)
		}
		n, at := 200+random.IntN(12000), random.IntN(len(block)/2)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%05d.txt", i)), block[at:at+n], 0o644); err != nil {
			return sum, fmt.Errorf("generate files: %w", err)
		}
		sum.files++
		sum.bytes += uint64(n)
		step(sum)
	}
	return sum, nil
}

// removeTree is os.RemoveAll that also gets into directories that were copied without permission to write.
func removeTree(root string) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err = errors.Join(err, os.RemoveAll(root)); err != nil {
		return fmt.Errorf("remove %s: %w", root, err)
	}
	return nil
}
