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
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// BackupFile is a backup on disk; no node is needed to read it.
type BackupFile struct {
	Path string
	// Progress gets what was read of the file so far and its size; nil: nobody watches.
	Progress func(api.Progress)
}

// backupError says what is wrong with the file, and that none of it should be used.
func (f BackupFile) backupError(op string, err error) error {
	var e *api.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: f.Path, Why: "there is no such file", Hint: "give the file that lockstep backup create has written"}
	case errors.Is(err, backup.ErrNewer):
		return &api.Error{Code: api.CodeDamage, Op: op, Subject: f.Path, Why: err.Error(), Hint: "use the version of lockstep that wrote it, or a later one"}
	case errors.Is(err, backup.ErrNotBackup), errors.Is(err, backup.ErrTruncated), errors.Is(err, backup.ErrDamaged), errors.Is(err, backup.ErrAborted):
		return &api.Error{Code: api.CodeDamage, Op: op, Subject: f.Path, Why: err.Error(), Hint: "use another copy of it, or another backup"}
	}
	return &api.Error{Code: api.CodeFailed, Op: op, Subject: f.Path, Why: err.Error(), Hint: "see that the file can be read"}
}

// savedState is a group as a backup holds it.
type savedState struct {
	part backup.Part
	view kv.Reader
}

// Verify reads all of it: every byte, every state, and that every content that a state names is there.
func (f BackupFile) Verify(ctx context.Context) (api.BackupInfo, error) {
	info, _, err := f.load(ctx)
	return info, f.backupError("backup verify", err)
}

func (f BackupFile) load(ctx context.Context) (info api.BackupInfo, states map[string]savedState, err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return info, nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return info, nil, err
	}
	info = api.BackupInfo{File: f.Path, Size: uint64(st.Size()), Groups: []api.BackupGroup{}}
	states = map[string]savedState{}
	held := map[manifest.Hash]bool{}
	x, err := backup.Read(interruptible{ctx, file}, backup.Handler{
		Header: func(h backup.Header) error {
			info.Level, info.Cluster, info.Node, info.Version, info.Created = h.Level, h.Cluster, h.Node, h.Version, h.Created
			return nil
		},
		Part: func(p backup.Part, body io.Reader) error {
			if p.Kind != backup.PartState {
				return nil
			}
			view, err := readSaved(p, body)
			states[p.Group] = savedState{p, view}
			return err
		},
		Content: func(h backup.Hash, _ uint64, body io.Reader) error {
			_, err := io.Copy(io.Discard, body)
			if errors.Is(err, backup.ErrGivenUp) {
				return nil
			}
			held[manifest.Hash(h)] = true
			return err
		},
		Progress: f.progress(info.Size),
	})
	if err != nil {
		return info, nil, err
	}
	info.Contents, info.ContentBytes = x.Contents, x.ContentBytes
	for _, name := range x.Groups() {
		s := states[name]
		if err := complete(name, s, held); err != nil {
			return info, nil, err
		}
		info.Groups = append(info.Groups, describeSaved(s.part))
	}
	return info, states, nil
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

// readSaved loads a state; what it says has to agree with how the backup describes it.
func readSaved(p backup.Part, body io.Reader) (kv.Reader, error) {
	at, line, view, err := engine.ReadState(body)
	if err != nil {
		// What the file itself is damaged by comes first.
		if _, rest := io.Copy(io.Discard, body); rest != nil {
			return nil, rest
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

// complete looks for every content that a state names.
func complete(group string, s savedState, held map[manifest.Hash]bool) error {
	return manifest.Walk(s.view, "", "", func(path string, n manifest.Node) error {
		if n.Kind == manifest.File && !held[n.Hash] {
			return fmt.Errorf("%w: the content of %s in group %s is not there", backup.ErrDamaged, api.EscapePath(path), group)
		}
		return nil
	})
}

func describeSaved(p backup.Part) api.BackupGroup {
	g := api.BackupGroup{
		Name: p.Group, History: p.Position.History, Term: p.Position.Term, Index: p.Position.Index,
		Files: p.Files, Bytes: p.Bytes, Digest: p.Tree.String(), Paths: map[string]string{},
	}
	for _, m := range p.Members {
		g.Paths[m.Node] = m.Path
	}
	return g
}

// List visits what a group held directly below a directory, or the one entry that is at a path.
func (f BackupFile) List(ctx context.Context, group, path string) ([]api.DirEntry, error) {
	const op = "backup ls"
	_, states, err := f.load(ctx)
	if err != nil {
		return nil, f.backupError(op, err)
	}
	s, ok := states[group]
	if !ok {
		return nil, f.noGroup(op, group)
	}
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
	info, states, err := f.load(ctx)
	if err != nil {
		return req, info, f.backupError(op, err)
	}
	s, ok := states[group]
	if !ok {
		return req, info, f.noGroup(op, group)
	}
	p := s.part
	return api.Restore{
		Group: group, As: group, History: p.Position.History, Term: p.Position.Term, Index: p.Position.Index, Files: p.Files, Bytes: p.Bytes,
		Ack: p.Settings.Ack, Conflict: p.Settings.Conflict, Mode: p.Settings.Mode, Topology: p.Settings.Topology,
	}, info, nil
}

// Send writes what the file holds of one group, as a restore sends it. The file has been verified before; if it has
// changed since, the other side is told.
func (f BackupFile) Send(ctx context.Context, group string, w io.Writer) error {
	file, err := os.Open(f.Path)
	if err != nil {
		return f.backupError("restore", err)
	}
	defer file.Close()
	_, states, err := f.load(ctx)
	if err != nil {
		return f.backupError("restore", err)
	}
	s, ok := states[group]
	if !ok {
		return f.noGroup("restore", group)
	}
	named := map[backup.Hash]bool{}
	if err := manifest.Walk(s.view, "", "", func(_ string, n manifest.Node) error {
		named[backup.Hash(n.Hash)] = named[backup.Hash(n.Hash)] || n.Kind == manifest.File
		return nil
	}); err != nil {
		return err
	}
	out := backup.NewFragment(w)
	var sent uint64
	_, err = backup.Read(interruptible{ctx, file}, backup.Handler{
		Part: func(p backup.Part, body io.Reader) error {
			if p.Kind != backup.PartState || p.Group != group {
				return nil
			}
			return out.Part(p, func(w io.Writer) error { _, err := io.Copy(w, body); return err })
		},
		Content: func(h backup.Hash, size uint64, body io.Reader) error {
			if !named[h] {
				return nil
			}
			_, err := out.Content(h, size, body)
			if sent += size; f.Progress != nil {
				f.Progress(api.Progress{What: "restoring", Done: min(sent, s.part.Bytes), Total: s.part.Bytes, Unit: "bytes"})
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
