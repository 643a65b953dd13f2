package place

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// strangers are an owner and a group that this process is not, wherever it runs as root.
const strangers = 1

// MayChown tries, on a file in the directory work, whether this process may give files away. A root may not in a user
// namespace of one user, without CAP_CHOWN, or on a file system of a server that takes it for nobody. With an error, of a
// full disk for one, nothing is known, and it says true.
func MayChown(work string) (bool, error) {
	f, err := os.CreateTemp(work, "owner-*")
	if err != nil {
		return true, fmt.Errorf("try to change an owner: %w", err)
	}
	err = setOwner(int(f.Fd()), strangers, strangers)
	if done := errors.Join(f.Close(), os.Remove(f.Name())); err == nil && done != nil {
		return true, fmt.Errorf("try to change an owner: %w", done)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL):
		return false, nil
	}
	return true, fmt.Errorf("try to change an owner: %w", err)
}
