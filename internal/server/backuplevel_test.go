package server

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// stateAt is the state of a group without files, at a cluster level.
func stateAt(t *testing.T, level uint64) []byte {
	t.Helper()
	limits := replica.DefaultLimits()
	limits.Level = level
	rep, err := replica.OpenLimited(kv.NewMemory(), manifest.New(manifest.Config{}), limits)
	if err != nil {
		t.Fatal(err)
	}
	first := &raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{Voters: []uint64{1}}}
	entry := &raftpb.Entry{Index: proto.Uint64(2), Term: proto.Uint64(1), Data: core.EncodeBatch(&core.Batch{Level: level, Proposer: 1, ID: 1})}
	if err := rep.InitLine(first, replica.Line{History: [16]byte{7}}); err != nil {
		t.Fatal(err)
	}
	if _, err := rep.Apply([]*raftpb.Entry{entry}, nil); err != nil {
		t.Fatal(err)
	}
	view := rep.StateView()
	defer view.Close()
	var out bytes.Buffer
	if err := rep.WriteSnapshot(view, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// before is a state as the version before wrote it, as far as its first bytes tell.
func before(t *testing.T, state []byte) []byte {
	t.Helper()
	old := bytes.Replace(state, []byte("lockstep snapshot 4\n"), []byte("lockstep snapshot 3\n"), 1)
	if bytes.Equal(old, state) {
		t.Fatal("the state does not begin as version 4")
	}
	return old
}

// What is uploaded says of which level it is, whatever the request said; nothing stays of what cannot be restored.
func TestUploadAboveTheLevel(t *testing.T) {
	for what, c := range map[string]struct {
		state []byte
		why   string
	}{
		"of this level":      {stateAt(t, api.Level), ""},
		"of the next":        {stateAt(t, api.Level+1), fmt.Sprintf("of cluster level %d, this cluster is at %d", api.Level+1, api.Level)},
		"of another version": {before(t, stateAt(t, api.Level)), "another version"},
	} {
		n := &node{data: &dataDir{path: t.TempDir()}, ctl: newControlPlane()}
		n.level.Store(api.Level)
		var body bytes.Buffer
		out := backup.NewFragment(&body, nil)
		p := backup.Part{Kind: backup.PartState, Group: "web"} // which leaves the level out
		write := func(w io.Writer) error { _, err := w.Write(c.state); return err }
		if err := errors.Join(out.Part(p, write), out.EndGroup()); err != nil {
			t.Fatal(err)
		}
		err := n.receiveUpload("0123456789abcdef", &body)
		_, kept := os.Stat(n.uploadDir("0123456789abcdef"))
		var e *api.Error
		switch {
		case c.why == "" && (err != nil || kept != nil):
			t.Errorf("%s: %v, %v", what, err, kept)
		case c.why != "" && (!errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Why, c.why) || e.Hint == "" || kept == nil):
			t.Errorf("%s: %v; kept: %v", what, err, kept)
		}
	}
}

// A backup with a state in another version's form is no damaged one, and says who reads it. Damage comes first.
func TestBackupOfAnotherVersion(t *testing.T) {
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, backup.Header{Node: "n1", Version: "0.9", Groups: []string{"web"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	state := before(t, stateAt(t, 1))
	p := backup.Part{Kind: backup.PartState, Group: "web", Position: backup.Position{History: hex.EncodeToString(make([]byte, 16)), Term: 1, Index: 2}}
	err = w.Part(p, func(w io.Writer) error { _, err := w.Write(state); return err })
	if err == nil {
		_, err = w.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(out.Bytes())
	altered[bytes.Index(altered, []byte("lockstep snapshot"))+100] ^= 1
	for what, c := range map[string]struct {
		file []byte
		code api.Code
		why  []string
	}{
		"of before":         {out.Bytes(), api.CodeConflict, []string{"another version", "lockstep 0.9", "version 3"}},
		"damaged, too":      {altered, api.CodeDamage, []string{"damaged"}},
		"of a later format": {bytes.Replace(out.Bytes(), fmt.Appendf(nil, `{"level":%d,`, backup.Level), []byte(`{"level":9,`), 1), api.CodeConflict, []string{"newer version"}},
	} {
		path := filepath.Join(t.TempDir(), "backup")
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := BackupFile{Path: path}.Verify(t.Context())
		var e *api.Error
		if !errors.As(err, &e) || e.Code != c.code || e.Hint == "" {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, why := range c.why {
			if !strings.Contains(e.Why, why) {
				t.Errorf("%s: %q does not say %q", what, e.Why, why)
			}
		}
	}
}
