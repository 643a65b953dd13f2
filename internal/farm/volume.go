package farm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Volume is a file system of its own, on a loop device, that can be filled to the last block. It needs root.
type Volume struct {
	image string
	Dir   string // where it is mounted
}

// NewVolume makes one of the given size below dir. The error says what is missing.
func NewVolume(dir string, bytes int64) (*Volume, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("farm: a loop mount needs root")
	}
	v := &Volume{image: filepath.Join(dir, "volume.img"), Dir: filepath.Join(dir, "volume")}
	f, err := os.Create(v.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close(), os.Mkdir(v.Dir, 0o755)); err != nil {
		return nil, err
	}
	for _, line := range [][]string{{"mkfs.ext4", "-q", "-m", "0", v.image}, {"mount", "-o", "loop", v.image, v.Dir}} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("farm: %s: %w: %s", strings.Join(line, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return v, nil
}

func (v *Volume) filler() string { return filepath.Join(v.Dir, "filler") }

// Fill takes all the room there is.
func (v *Volume) Fill() error {
	f, err := os.Create(v.filler())
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for size := len(block); size >= 512; {
		if _, err = f.Write(block[:size]); errors.Is(err, syscall.ENOSPC) {
			err, size = nil, size/2
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// Free gives the room back.
func (v *Volume) Free() error {
	err := os.Remove(v.filler())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Close unmounts it; nobody may use it any more.
func (v *Volume) Close() error {
	if out, err := exec.Command("umount", v.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("farm: umount %s: %w: %s", v.Dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Repair checks the file system and mounts it again; nobody may use it.
func (v *Volume) Repair() error {
	if err := v.Close(); err != nil {
		return err
	}
	// 1: errors were found and repaired
	var ended *exec.ExitError
	if out, err := exec.Command("fsck.ext4", "-y", v.image).CombinedOutput(); err != nil && (!errors.As(err, &ended) || ended.ExitCode() != 1) {
		return fmt.Errorf("farm: fsck %s: %w: %s", v.image, err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", v.image, v.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("farm: mount %s: %w: %s", v.image, err, strings.TrimSpace(string(out)))
	}
	return nil
}
