package content

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Staged large contents are files in WORK/large: the hash in hex when complete (and synced before they got that
// name), <hash>.part or <hash>.<n>.part while they grow, <hash>.taken from TakeStaged on, so that the same content
// can be staged anew while that one is on its way to its place.
const (
	partSuffix  = ".part"
	takenSuffix = ".taken"
)

func (s *Store) largeDir() string { return filepath.Join(s.opts.Dir, "large") }

func (s *Store) largeName(h manifest.Hash) string {
	return filepath.Join(s.largeDir(), hex.EncodeToString(h[:]))
}

func (s *Store) findLarge() error {
	if err := os.MkdirAll(s.largeDir(), 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(s.largeDir())
	if err != nil {
		return err
	}
	now := s.opts.Now()
	for _, e := range names {
		name, taken := strings.CutSuffix(e.Name(), takenSuffix)
		var h manifest.Hash
		if n, err := hex.Decode(h[:], []byte(name)); err != nil || n != len(h) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if taken { // and not placed before the process ended
			if err := os.Rename(s.largeName(h)+takenSuffix, s.largeName(h)); err != nil {
				return err
			}
		}
		s.large[h] = &largeFile{size: info.Size(), staged: now, uses: 1}
	}
	return nil
}

// largePath returns the path of a complete staged file that is still there.
func (s *Store) largePath(h manifest.Hash) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.large[h]
	if f == nil || f.unnamed {
		return "", false
	}
	path := s.largeName(h)
	if f.taken {
		path += takenSuffix
	}
	_, err := os.Lstat(path)
	return path, err == nil
}

// takeLarge gives a complete file away for good, unless others will want the content too.
func (s *Store) takeLarge(h manifest.Hash) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.large[h]
	if f == nil || f.unnamed || f.taken || f.uses != 1 {
		return "", false
	}
	path := s.largeName(h) + takenSuffix
	if err := os.Rename(s.largeName(h), path); err != nil { // as good as not staged
		return "", false
	}
	f.taken = true
	return path, true
}

// touchLarge counts one more staging of a complete content.
func (s *Store) touchLarge(h manifest.Hash) bool {
	if _, ok := s.largePath(h); !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.large[h]
	if f == nil || f.unnamed || f.taken {
		return false
	}
	f.uses++
	f.staged = s.opts.Now()
	return true
}

// adopt gives a finished part file its final name. It is found once nameLarge has made that durable. A file that was taken and
// not released yet counts as a use: its release must not be taken for that of the new one.
func (s *Store) adopt(part string, h manifest.Hash, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adoptLocked(part, h, size)
}

func (s *Store) adoptLocked(part string, h manifest.Hash, size int64) error {
	if err := os.Rename(part, s.largeName(h)); err != nil {
		return err
	}
	next := &largeFile{size: size, staged: s.opts.Now(), uses: 1, unnamed: true}
	if f := s.large[h]; f != nil {
		next.uses = f.uses + 1
		next.unnamed = f.unnamed || f.taken // else the name was durable, and leads to one of the two files
	}
	s.large[h] = next
	return nil
}

// nameLarge makes the name of an adopted content durable. If that fails, the content is not staged.
func (s *Store) nameLarge(h manifest.Hash) error {
	err := pack.SyncDir(s.largeDir())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f := s.large[h]; {
	case f == nil && err == nil:
		return fmt.Errorf("stage %x: %w", h[:4], os.ErrNotExist) // its name was not durable for another
	case err == nil:
		f.unnamed = false
	case f != nil && f.unnamed:
		return errors.Join(err, s.removeLarge(h))
	}
	return err
}

func (s *Store) releaseLarge(hashes []manifest.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, h := range hashes {
		f := s.large[h]
		if f == nil {
			continue
		}
		if f.uses = max(0, f.uses-1); f.uses == 0 && f.taken {
			errs = append(errs, s.removeLarge(h))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) dropLarge(hashes []manifest.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, h := range hashes {
		if f := s.large[h]; f != nil && f.uses == 0 {
			errs = append(errs, s.removeLarge(h))
		}
	}
	return errors.Join(errs...)
}

// removeLarge forgets and unlinks a complete file; mu is held.
func (s *Store) removeLarge(h manifest.Hash) error {
	delete(s.large, h)
	for _, path := range []string{s.largeName(h), s.largeName(h) + takenSuffix} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("drop staged content: %w", err)
		}
	}
	return nil
}

func (s *Store) expireLarge(before time.Time, stillNamed func(manifest.Hash) bool) error {
	var old []manifest.Hash
	s.mu.Lock()
	for h, f := range s.large {
		if !f.staged.After(before) {
			old = append(old, h)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, h := range old {
		if stillNamed(h) {
			continue
		}
		s.mu.Lock()
		if f := s.large[h]; f != nil && !f.staged.After(before) {
			errs = append(errs, s.removeLarge(h))
		}
		s.mu.Unlock()
	}
	return errors.Join(append(errs, s.expireParts(before))...)
}

func (s *Store) expireParts(before time.Time) error {
	names, err := os.ReadDir(s.largeDir())
	if err != nil {
		return fmt.Errorf("expire partial contents: %w", err)
	}
	var errs []error
	for _, e := range names {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), partSuffix) || info.ModTime().After(before) {
			continue
		}
		path := filepath.Join(s.largeDir(), e.Name())
		if !s.lockPart(path) {
			continue
		}
		errs = append(errs, os.Remove(path))
		s.unlockPart(path)
	}
	return errors.Join(errs...)
}

func (s *Store) lockPart(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts[path] {
		return false
	}
	s.parts[path] = true
	return true
}

func (s *Store) unlockPart(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.parts, path)
}

// claimPart locks the part file of a content; a second transfer of the same content at the same time gets a
// file of its own.
func (s *Store) claimPart(h manifest.Hash) string {
	base := s.largeName(h)
	path := base + partSuffix
	for n := 1; !s.lockPart(path); n++ {
		path = fmt.Sprintf("%s.%d%s", base, n, partSuffix)
	}
	return path
}
