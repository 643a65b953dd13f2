package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// The root is on every node before the group is, and the only entry that nobody created through it. Mode and owner are
// those of a directory that was in use: one with files in it claims them when it is bound, and the first to do so counts.
// An empty one offers its own, which such a claim replaces. One that was made for the binding, since there was none,
// takes what the group has, and if that is nothing, what it was made with follows with the first change of its time.

// rootMode is what directories have that are made for a binding.
const rootMode = 0o755

// Fresh says whether nothing was ever recorded in the placed table of a binding, but for what MakeRoot says there.
func Fresh(t kv.Reader) (bool, error) {
	fresh := true
	err := t.Scan(nil, nil, func(k, _ []byte) error {
		if string(k) == string(metaKey(metaMade)) {
			return nil
		}
		fresh = false
		return kv.ErrStop
	})
	if err != nil {
		return false, fmt.Errorf("look into the placed table: %w", err)
	}
	return fresh, nil
}

// MakeRoot makes the root of a binding that was never taken up, if it does not exist, and the directories above it: 0755,
// whatever the umask is. The placed table says that it was made before it is.
func MakeRoot(table kv.Store, root string) error {
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b := table.Batch()
	defer b.Discard()
	err := b.Set(metaKey(metaMade), []byte{1})
	if err == nil {
		err = b.Commit()
	}
	if err != nil {
		return fmt.Errorf("record that %s is made: %w", root, err)
	}
	return makeOpen(filepath.Clean(root))
}

// makeOpen makes dir and what is missing above it.
func makeOpen(dir string) error {
	err := os.Mkdir(dir, rootMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeOpen(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, rootMode)
		}
	}
	if errors.Is(err, syscall.EEXIST) {
		return nil // by somebody else: its mode is theirs
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, rootMode)
}

// claimRoot settles, when a binding is taken up for the first time and before anything is placed, whose mode and owner the
// root has. The state includes all that was committed.
func (a *Agent) claimRoot(ctx context.Context) error {
	rec, err := a.table.get("")
	if err != nil || rec.Stat.Kind != manifest.Absent || a.cfg.ReadOnly {
		return err
	}
	in, err := a.root.Stat("")
	if err != nil {
		return fmt.Errorf("look at the root: %w", err)
	}
	rec = record{Placed: place.Placed{Stat: place.StatOf(in)}}
	_, made, err := a.cfg.Table.Get(metaKey(metaMade))
	if err != nil {
		return err
	}
	if !made {
		if rec.Version, err = a.proposeRoot(ctx, rec.node()); err != nil {
			return fmt.Errorf("propose the root's mode and owner: %w", err)
		}
	}
	return a.recordOne("", manifest.Absent, rec)
}

// proposeRoot returns the version that the root has as proposed, 0 if it stays, or becomes, something else.
func (a *Agent) proposeRoot(ctx context.Context, n manifest.Node) (version uint64, err error) {
	empty, err := emptyRoot(a.cfg.Root)
	if err != nil {
		return 0, err
	}
	v, err := a.cfg.Log.View()
	if err != nil {
		return 0, err
	}
	set, claimed, err := manifest.RootClaimed(v)
	v.Close()
	if err != nil || claimed || set && empty {
		return 0, err
	}
	b := manifest.Batch{Author: a.cfg.Node, Changes: []manifest.Change{{Node: n, SameContent: empty}}}
	_, result, err := a.cfg.Log.Propose(ctx, manifest.EncodeBatch(b), nil)
	if err != nil {
		return 0, err
	}
	outs, err := manifest.DecodeOutcomes(result)
	if err == nil && len(outs) != 1 {
		err = fmt.Errorf("%d outcomes for a change", len(outs))
	}
	if err != nil || outs[0].Code != manifest.Accepted && outs[0].Code != manifest.Same {
		return 0, err
	}
	return outs[0].Version, nil
}

// emptyRoot says whether there is nothing in root but what is Lockstep's own.
func emptyRoot(root string) (bool, error) {
	d, err := os.Open(root)
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return !slices.ContainsFunc(names, func(name string) bool { return name != manifest.Reserved }), nil
}

// sameAccess says whether two looks at a directory show the same mode and owner.
func sameAccess(a, b *place.Stat) bool {
	return a.Kind == b.Kind && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID
}
