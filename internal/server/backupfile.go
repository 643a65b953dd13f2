package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// BackupFile is a backup on disk; no node is needed to read it. However much it holds, reading it takes the same
// memory: what has to be remembered is in a scratch store.
type BackupFile struct {
	Path string
	// Progress gets what was read of the file so far and its size; nil: nobody watches.
	Progress func(api.Progress)
}

// backupError says what is wrong with the file, and that none of it should be used.
func (f BackupFile) backupError(op string, err error) error {
	var e *api.Error
	var failed *scratchError
	switch {
	case errors.As(err, &failed):
		return failed.asAPI(op)
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded): // nothing is wrong with the file
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: f.Path, Why: "there is no such file", Hint: "give the file that lockstep backup create has written"}
	case errors.Is(err, backup.ErrNewer):
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: f.Path, Why: err.Error(), Hint: "use the version of lockstep that wrote it, or a later one"}
	case otherVersion(op, f.Path, err) != nil:
		return otherVersion(op, f.Path, err)
	case errors.Is(err, backup.ErrNotBackup), errors.Is(err, backup.ErrTruncated), errors.Is(err, backup.ErrDamaged), errors.Is(err, backup.ErrAborted):
		return &api.Error{Code: api.CodeDamage, Op: op, Subject: f.Path, Why: err.Error(), Hint: "use another copy of it, or another backup"}
	}
	return &api.Error{Code: api.CodeFailed, Op: op, Subject: f.Path, Why: err.Error(), Hint: "see that the file can be read"}
}

// otherVersion says that a state is in the form of another version of lockstep, which is no damage; nil: err is about
// something else.
func otherVersion(op, subject string, err error) *api.Error {
	var other *replica.SnapshotVersionError
	if !errors.As(err, &other) {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: subject, Why: "the backup is of another version of lockstep: " + err.Error(),
		Hint: "it may well be sound: read it, and restore it, with the version of lockstep that wrote it"}
}

// savedState is a group as a backup holds it.
type savedState struct {
	part  backup.Part
	view  kv.Reader
	named *contentSet // contents, with a path of each
}

// Verify reads all of it: every byte, every state, and that every content that a state names is there.
func (f BackupFile) Verify(ctx context.Context) (api.BackupInfo, error) {
	info, err := f.with(ctx, func(api.BackupInfo, *loaded) error { return nil })
	return info, f.backupError("backup verify", err)
}

// loaded is what was read of a verified backup.
type loaded struct {
	states  map[string]savedState
	scratch *scratch
}

func (l *loaded) close() error {
	for _, s := range l.states {
		s.named.close()
	}
	return l.scratch.close()
}

// with verifies the file and shows it to use, during the call.
func (f BackupFile) with(ctx context.Context, use func(api.BackupInfo, *loaded) error) (info api.BackupInfo, err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return info, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return info, err
	}
	info = api.BackupInfo{File: f.Path, Size: uint64(st.Size()), Groups: []api.BackupGroup{}}
	l := &loaded{states: map[string]savedState{}}
	if l.scratch, err = newScratch(scratchCache, scratchTable); err != nil {
		return info, err
	}
	defer func() { err = l.scratch.blame(errors.Join(err, l.close())) }()
	if err := f.load(ctx, file, &info, l); err != nil {
		return info, err
	}
	return info, use(info, l)
}

func (f BackupFile) load(ctx context.Context, file io.Reader, info *api.BackupInfo, l *loaded) error {
	held := l.scratch.set("held")
	defer held.close()
	x, err := backup.Read(interruptible{ctx, file}, backup.Handler{
		Header: func(h backup.Header) error {
			info.Level, info.Cluster, info.Node, info.Version, info.Created = h.Level, h.Cluster, h.Node, h.Version, h.Created
			return nil
		},
		Part: func(p backup.Part, body io.Reader) error {
			if p.Kind != backup.PartState {
				return nil
			}
			number := len(l.states)
			view, err := readSaved(l.scratch.part(fmt.Sprintf("state %d", number)), p, body)
			l.states[p.Group] = savedState{p, view, l.scratch.set(fmt.Sprintf("named %d", number))}
			if other := (*replica.SnapshotVersionError)(nil); errors.As(err, &other) {
				return fmt.Errorf("written by lockstep %s: %w", info.Version, err)
			}
			return err
		},
		Progress: f.progress(info.Size), Seen: collected{held},
	})
	if err != nil {
		return err
	}
	if n, err := held.distinct(); err != nil {
		return err
	} else if n != x.Contents {
		return fmt.Errorf("%w: of %d contents %d come more than once", backup.ErrDamaged, x.Contents, x.Contents-n)
	}
	info.Contents, info.ContentBytes = x.Contents, x.ContentBytes
	for _, name := range x.Groups() {
		s := l.states[name]
		if err := s.complete(held); err != nil {
			return err
		}
		info.Groups = append(info.Groups, describeSaved(s.part))
	}
	return nil
}

// progressStep is how many bytes are read between two reports.
const progressStep = 8 << 20

func (f BackupFile) progress(size uint64) func(uint64) {
	if f.Progress == nil {
		return nil
	}
	next := uint64(progressStep)
	return func(n uint64) {
		if n >= next {
			next = n + progressStep
			f.Progress(api.Progress{What: "verifying", Done: n, Total: size, Unit: "bytes"})
		}
	}
}

// readSaved loads a state into store; what it says has to agree with how the backup describes it.
func readSaved(store kv.Store, p backup.Part, body io.Reader) (kv.Reader, error) {
	at, line, view, err := engine.ReadState(store, api.Level, body)
	if newer := (*replica.NewerLevelError)(nil); errors.As(err, &newer) {
		return nil, fmt.Errorf("%w: the state of group %s: %w", backup.ErrNewer, p.Group, newer)
	}
	if err != nil {
		// What the file itself is damaged by comes first.
		if _, rest := io.Copy(io.Discard, body); rest != nil {
			return nil, rest
		}
		if other := (*replica.SnapshotVersionError)(nil); errors.As(err, &other) {
			return nil, fmt.Errorf("the state of group %s: %w", p.Group, other)
		}
		return nil, fmt.Errorf("%w: the state of group %s: %w", backup.ErrDamaged, p.Group, err)
	}
	if hex.EncodeToString(line.History[:]) != p.Position.History || at.Index != p.Position.Index || at.Term != p.Position.Term {
		return nil, fmt.Errorf("%w: the state of group %s is at %d, not at %d", backup.ErrDamaged, p.Group, at.Index, p.Position.Index)
	}
	tree, err := manifest.TreeDigest(view)
	if err != nil || backup.Hash(tree) != p.Tree {
		return nil, fmt.Errorf("%w: the state of group %s does not match its digest (%v)", backup.ErrDamaged, p.Group, err)
	}
	return view, nil
}

// complete collects the contents that a state names, and looks for each among those that the backup holds.
func (s savedState) complete(held *contentSet) error {
	err := manifest.Walk(s.view, "", "", func(path string, n manifest.Node) error {
		if n.Kind != manifest.File {
			return nil
		}
		return s.named.note(backup.Hash(n.Hash), path)
	})
	if err != nil {
		return err
	}
	if path, lacks, err := s.named.lacking(held); err != nil {
		return err
	} else if lacks {
		return fmt.Errorf("%w: the content of %s in group %s is not there", backup.ErrDamaged, api.EscapePath(path), s.part.Group)
	}
	return nil
}

func describeSaved(p backup.Part) api.BackupGroup {
	g := api.BackupGroup{
		Name: p.Group, History: p.Position.History, Term: p.Position.Term, Index: p.Position.Index,
		Files: p.Files, Bytes: p.Bytes, Digest: p.Tree.String(), Paths: map[string]string{}, Level: max(p.Level, core.FirstLevel),
	}
	for _, m := range p.Members {
		g.Paths[m.Node] = m.Path
	}
	return g
}

// List visits what a group held directly below a directory, or the one entry that is at a path.
func (f BackupFile) List(ctx context.Context, group, path string) ([]api.DirEntry, error) {
	const op = "backup ls"
	var out []api.DirEntry
	_, err := f.with(ctx, func(_ api.BackupInfo, l *loaded) error {
		s, ok := l.states[group]
		if !ok {
			return f.noGroup(op, group)
		}
		var err error
		out, err = f.listSaved(op, s, path)
		return err
	})
	return out, f.backupError(op, err)
}

func (f BackupFile) listSaved(op string, s savedState, path string) ([]api.DirEntry, error) {
	group := s.part.Group
	at, found, err := manifest.Get(s.view, path)
	if err != nil {
		return nil, err
	}
	out := []api.DirEntry{}
	switch {
	case path != "" && !found:
		return nil, &api.Error{Code: api.CodeNotFound, Op: op, Subject: api.EscapePath(path), Why: "the backup has no such path in group " + group,
			Hint: "lockstep backup ls " + f.Path + " " + group}
	case found && at.Kind != manifest.Dir:
		return append(out, entry(path, at)), nil
	}
	err = manifest.List(s.view, path, func(name string, nd manifest.Node) error {
		out = append(out, entry(name, nd))
		return nil
	})
	return out, err
}

func (f BackupFile) noGroup(op, group string) error {
	return &api.Error{Code: api.CodeNotFound, Op: op, Subject: group, Why: "the backup has no such group", Hint: "lockstep backup ls " + f.Path + " lists them"}
}

// Request verifies all of the file and returns what a restore of one group has to say.
func (f BackupFile) Request(ctx context.Context, group string) (req api.Restore, info api.BackupInfo, err error) {
	const op = "restore"
	info, err = f.with(ctx, func(_ api.BackupInfo, l *loaded) error {
		s, ok := l.states[group]
		if !ok {
			return f.noGroup(op, group)
		}
		p := s.part
		req = api.Restore{
			Group: group, As: group, History: p.Position.History, Level: p.Level, Term: p.Position.Term, Index: p.Position.Index, Files: p.Files, Bytes: p.Bytes,
			Ack: p.Settings.Ack, Conflict: p.Settings.Conflict, Mode: p.Settings.Mode, Topology: p.Settings.Topology,
		}
		return nil
	})
	return req, info, f.backupError(op, err)
}

// Send writes what the file holds of one group, as a restore sends it. The file has been verified before; if it has
// changed since, the other side is told.
func (f BackupFile) Send(ctx context.Context, group string, w io.Writer) error {
	const op = "restore"
	file, err := os.Open(f.Path)
	if err != nil {
		return f.backupError(op, err)
	}
	defer file.Close()
	_, err = f.with(ctx, func(_ api.BackupInfo, l *loaded) error {
		s, ok := l.states[group]
		if !ok {
			return f.noGroup(op, group)
		}
		return f.sendSaved(ctx, file, s, w)
	})
	return f.backupError(op, err)
}

func (f BackupFile) sendSaved(ctx context.Context, file io.Reader, s savedState, w io.Writer) error {
	out := backup.NewFragment(w, unminded{})
	var bytes uint64
	_, err := backup.Read(interruptible{ctx, file}, backup.Handler{
		Seen: unminded{},
		Part: func(p backup.Part, body io.Reader) error {
			if p.Kind != backup.PartState || p.Group != s.part.Group {
				return nil
			}
			return out.Part(p, func(w io.Writer) error { _, err := io.Copy(w, body); return err })
		},
		Content: func(h backup.Hash, size uint64, body io.Reader) error {
			if wanted, err := s.named.Has(h); !wanted {
				return err
			}
			_, err := out.Content(h, size, body)
			if bytes += size; f.Progress != nil {
				f.Progress(api.Progress{What: "restoring", Done: min(bytes, s.part.Bytes), Total: s.part.Bytes, Unit: "bytes"})
			}
			return err
		},
	})
	if err != nil {
		return errors.Join(f.backupError("restore", err), out.Abort(err))
	}
	return out.EndGroup()
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	io.Reader
}

func (r interruptible) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}
