package sim

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"io"
	"strconv"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// files is a workload on the production manifest machine: authors change a small tree, each according to
// what some replica held a while ago, so that they often contradict each other. Every content is written
// once, so its fate can be followed: it may only ever go because of a change whose author knew it.
type files struct {
	w      *world
	gr     *group
	policy manifest.Policy
	stamp  int64
	stands map[string]standing // what the machine's answers say stands at a path
}

// standing is a content at a path.
type standing struct {
	content string // "": a directory
	version uint64
}

var filePaths = []string{"a", "b", "c", "a/x", "a/y", "a/d/x", "b/x", "b/y", "d/e/f/x", "d/e"}

func newFiles(gr *group) *files {
	w := gr.w
	policies := []string{"keep-both", "keep-both", "first", "newest", "prefer:node-1"}
	p, err := manifest.ParsePolicy(policies[w.dice.fate.IntN(len(policies))])
	must(err, "parse policy")
	return &files{w: w, gr: gr, policy: p, stands: map[string]standing{}}
}

// manifestDiffer finds differences of manifests by their digests.
type manifestDiffer struct{}

func (manifestDiffer) ServeDiff(view kv.Reader, rw io.ReadWriter) error {
	return manifest.ServeDiff(view, rw)
}

func (manifestDiffer) FetchDiff(local kv.Reader, rw io.ReadWriter, tx replica.Writer) error {
	_, err := manifest.FetchDiff(local, rw, tx.Set, tx.Delete)
	return err
}

func (f *files) turn() {}

func (f *files) differ() differ { return manifestDiffer{} }

func opOf(payload []byte) uint64 {
	h := fnv.New64a()
	h.Write(payload)
	return h.Sum64()
}

func (f *files) machine(h *host) machine.Machine {
	return &spy{Machine: manifest.New(manifest.Config{Policy: f.policy}), gr: f.gr, who: h.id, op: opOf, first: f.executed}
}

// contentOf names a node's content; directories have none.
func contentOf(n manifest.Node) string {
	switch n.Kind {
	case manifest.File:
		return strconv.FormatUint(binary.BigEndian.Uint64(n.Hash[:8]), 10)
	case manifest.Symlink:
		return n.Target
	}
	return ""
}

func (f *files) next(c *client) request {
	r := f.w.dice.work
	if r.IntN(6) == 0 {
		return request{read: func(kv.Reader) {}}
	}
	// The root's own metadata never conflicts; it makes the command like no other.
	f.stamp++
	b := manifest.Batch{Author: "node-" + strconv.FormatUint(c.id, 10)}
	b.Changes = append(b.Changes, manifest.Change{Node: manifest.Node{Kind: manifest.Dir, Mode: 0o755, MTime: f.stamp}})
	known := f.someView(c)
	for range r.IntN(4) + 1 {
		b.Changes = append(b.Changes, f.change(known))
	}
	if known != nil {
		must(known.Close(), "close view")
	}
	payload := manifest.EncodeBatch(b)
	op := opOf(payload)
	ack := core.AckQuorum
	if r.IntN(8) == 0 {
		ack = core.AckAll
	}
	return request{payload: payload, ack: ack, answered: func(_ core.Answer, result []byte, _ int) {
		if was, ok := f.gr.ledger.executed[op]; !ok || !bytes.Equal(was.result, result) {
			fail("client %d was told %x of operation %d, its result is %x", c.id, result, op, was.result)
		}
	}}
}

// someView is the state of the author's own replica, or of another that is up; nil if it finds none.
func (f *files) someView(c *client) kv.View {
	ms := f.gr.present()
	for _, m := range []*member{ms[int(c.id)%len(ms)], ms[f.w.dice.work.IntN(len(ms))]} {
		if m.alive() {
			return m.rep.View()
		}
	}
	return nil
}

func (f *files) change(known kv.Reader) manifest.Change {
	r := f.w.dice.work
	c := manifest.Change{Path: filePaths[r.IntN(len(filePaths))]}
	var cur manifest.Node
	if known != nil {
		var err error
		cur, _, err = manifest.Get(known, c.Path)
		must(err, "read manifest")
	}
	c.Base = cur.Version
	if r.IntN(8) == 0 {
		c.Base = uint64(r.IntN(int(cur.Version) + 2)) // older than it knows, or never seen
	}
	f.stamp++
	mtime := f.stamp + int64(r.IntN(100))
	switch r.IntN(12) {
	case 0, 1:
		// deleted
	case 2:
		c.Node = manifest.Node{Kind: manifest.Dir, Mode: 0o755, MTime: mtime}
	case 3:
		c.Node = manifest.Node{Kind: manifest.Symlink, MTime: mtime, Target: "to-" + strconv.FormatInt(f.stamp, 10)}
	case 4, 5: // metadata only
		if cur.Kind != manifest.Absent {
			c.Node = cur
			c.Node.MTime = mtime
			break
		}
		fallthrough
	default:
		c.Node = manifest.Node{Kind: manifest.File, Mode: 0o644, MTime: mtime, Size: 8}
		binary.BigEndian.PutUint64(c.Node.Hash[:], uint64(f.stamp))
	}
	return c
}

// executed follows, in log order, what the machine says that it did with each content.
func (f *files) executed(index uint64, payload, result []byte) {
	b, err := manifest.DecodeBatch(payload)
	must(err, "decode batch")
	outs, err := manifest.DecodeOutcomes(result)
	must(err, "decode outcomes")
	if len(outs) != len(b.Changes) {
		fail("%d outcomes for %d changes at %d", len(outs), len(b.Changes), index)
	}
	own := map[string]bool{} // paths that this command has set
	for i, c := range b.Changes {
		if c.Path == "" {
			continue
		}
		content, was := contentOf(c.Node), f.stands[c.Path]
		switch outs[i].Code {
		case manifest.Accepted:
			if outs[i].Copy != "" {
				f.stands[outs[i].Copy] = standing{was.content, index}
				f.w.report.Conflicts++
			} else if was.content != "" && was.content != content && c.Base != was.version && !own[c.Path] {
				fail("content %q at %q (version %d) went at %d because of a change to version %d",
					was.content, c.Path, was.version, index, c.Base)
			}
			f.stands[c.Path] = standing{content, index}
			if c.Node.Kind == manifest.Absent {
				delete(f.stands, c.Path)
			}
			own[c.Path] = true
		case manifest.Conflicted:
			f.w.report.Conflicts++
			if content != "" && outs[i].Copy == "" {
				fail("content %q lost a conflict at %q, index %d, and was not kept", content, c.Path, index)
			}
			f.stands[outs[i].Copy] = standing{content, index}
			own[outs[i].Copy] = true
		case manifest.Refused:
			fail("change %+v was refused", c)
		}
	}
}

// check compares the tree with what the machine said that it did.
func (f *files) check(m *member) {
	view := m.rep.View()
	found := map[string]string{}
	err := manifest.Walk(view, "", "", func(path string, n manifest.Node) error {
		if content := contentOf(n); content != "" {
			found[path] = content
		}
		return nil
	})
	must(err, "walk manifest")
	must(view.Close(), "close view")
	for path, s := range f.stands {
		if s.content != "" && found[path] != s.content {
			fail("content %q should stand at %q; there is %q", s.content, path, found[path])
		}
	}
	for path, content := range found {
		if f.stands[path].content != content {
			fail("content %q stands at %q; there should be %q", content, path, f.stands[path].content)
		}
	}
}
