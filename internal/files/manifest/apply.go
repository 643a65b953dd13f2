package manifest

import (
	"encoding/binary"
	"strings"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// application is one Batch being applied.
type application struct {
	tx         kv.Tx
	cmd        machine.Command
	author     uint64
	authorName string
	policy     Policy
	counters   counters
	before     counters
	events     []Changed

	dirs  map[string]struct{} // known to be directories now
	stale map[string]struct{} // directories whose digest memo, and that of all above, is gone
	mine  map[string]struct{} // paths that this command set, of those whose version is cmd.Index
	known map[string]record   // what stands at paths of the batch that it has not changed yet
	key   []byte
	val   []byte
}

func (m *Machine) begin(tx kv.Tx, cmd machine.Command, author string) (*application, error) {
	a := &application{
		tx: tx, cmd: cmd, authorName: author,
		dirs:  map[string]struct{}{"": {}},
		stale: map[string]struct{}{},
		mine:  map[string]struct{}{},
	}
	var err error
	if a.counters, err = readCounters(tx); err != nil {
		return nil, err
	}
	a.before = a.counters
	if a.policy, err = readPolicy(tx, m.cfg.Policy); err != nil {
		return nil, err
	}
	if a.author, err = a.authorNumber(author); err != nil {
		return nil, err
	}
	return a, nil
}

// foresee reads what stands at the paths of a batch at once: most are new, and that one by one, with an index
// and a filter of each table for each of them, was a quarter of the work of taking 100,000 files up.
func (a *application) foresee(changes []Change) error {
	if len(changes) < 2 {
		return nil
	}
	paths := make([]string, len(changes))
	for i := range changes {
		paths[i] = changes[i].Path
	}
	a.known = make(map[string]record, len(paths))
	return lookup(a.tx, paths, func(path string, r record) { a.known[path] = r })
}

func (a *application) end() error {
	if a.counters == a.before {
		return nil
	}
	return a.tx.Set([]byte{tagStats}, a.counters.encode())
}

// authorNumber finds or assigns the number of a node name.
func (a *application) authorNumber(name string) (uint64, error) {
	id, ok, err := numberOf(a.tx, name)
	if err != nil || ok {
		return id, err
	}
	a.counters.authors++
	id = a.counters.authors
	if err := a.tx.Set(authorNameKey(name), binary.AppendUvarint(nil, id)); err != nil {
		return 0, err
	}
	return id, a.tx.Set(authorKey(id), []byte(name))
}

// change decides one change and carries it out.
func (a *application) change(c *Change) (Outcome, error) {
	if !validChange(c) {
		return Outcome{Code: Refused}, nil
	}
	cur, err := a.get(c.Path)
	if err != nil {
		return Outcome{}, err
	}
	switch {
	case c.Path == "":
		return a.changeRoot(c, &cur)
	case c.Node.Kind == Absent:
		return a.remove(c, &cur)
	case cur.Kind == Absent && !c.SameContent:
		return a.create(c, &cur)
	case cur.Node.Equal(c.Node):
		return Outcome{Code: Same, Version: cur.Version}, nil
	case c.SameContent && !cur.SameContent(c.Node):
		return Outcome{Code: Superseded, Version: cur.Version}, nil
	case cur.Kind == Dir && c.Node.Kind == Dir:
		return a.accept(c, &cur, a.author)
	case cur.Kind == Dir:
		return a.replaceDir(c, &cur)
	default:
		return a.replaceLeaf(c, &cur)
	}
}

func validChange(c *Change) bool {
	n := &c.Node
	n.Version = 0
	if !ValidPath(c.Path) || c.Path == "" && n.Kind != Dir {
		return false
	}
	if n.Mode > 0o7777 || n.Size < 0 || c.Inline != nil && (n.Kind != File || int64(len(c.Inline)) != n.Size) {
		return false
	}
	switch n.Kind {
	case Absent:
		*n = Node{}
	case Symlink:
		n.Mode = 0o777
		return n.Target != "" && strings.IndexByte(n.Target, 0) < 0
	}
	return true
}

// unclaimed is the author of a root whose mode and owner nobody has said yet. Authors' numbers begin with 1.
const unclaimed = 0

// changeRoot decides about the root, which is there on every node before the group is. Who binds a directory says what it
// has (Base 0), and the first counts; what came with a change of its time alone was no more than what a node happened
// to make, and gives way to that.
func (a *application) changeRoot(c *Change, cur *record) (Outcome, error) {
	asked, author := *c, a.author
	switch {
	case c.SameContent:
		author = cur.author
		if cur.Kind != Absent {
			asked.Node = cur.Node
			asked.Node.MTime = c.Node.MTime
		}
	case c.Base == 0 && cur.author != unclaimed && !cur.Node.Equal(c.Node):
		return Outcome{Code: Superseded, Version: cur.Version}, nil
	}
	out := Outcome{Code: Same, Version: cur.Version}
	if !cur.Node.Equal(asked.Node) || cur.author == unclaimed && author != unclaimed {
		var err error
		if out, err = a.accept(&asked, cur, author); err != nil {
			return out, err
		}
	}
	if !asked.Node.Equal(c.Node) {
		out.Code = Superseded
	}
	return out, nil
}

func (a *application) remove(c *Change, cur *record) (Outcome, error) {
	switch {
	case cur.Kind == Absent:
		return Outcome{Code: Same}, nil
	case cur.Kind == Dir:
		empty, err := a.emptyDir(c.Path)
		if err != nil {
			return Outcome{}, err
		}
		if !empty {
			return Outcome{Code: Superseded, Version: cur.Version}, nil
		}
	case !a.current(c, cur):
		return Outcome{Code: Superseded, Version: cur.Version}, nil
	}
	if err := a.delete(c.Path, cur); err != nil {
		return Outcome{}, err
	}
	return Outcome{Code: Accepted}, nil
}

// create puts an entry where there is none. Base != 0 means that somebody deleted it meanwhile: an edit
// beats a delete, but a directory that only its metadata asks for stays gone.
func (a *application) create(c *Change, cur *record) (Outcome, error) {
	if c.Node.Kind == Dir && c.Base != 0 {
		return Outcome{Code: Superseded}, nil
	}
	blocked, err := a.makeParents(c)
	if err != nil {
		return Outcome{}, err
	}
	if blocked != "" {
		return a.divert(c, blocked)
	}
	return a.accept(c, cur, a.author)
}

// replaceDir decides about a file or symlink where a directory stands.
func (a *application) replaceDir(c *Change, cur *record) (Outcome, error) {
	if a.current(c, cur) {
		empty, err := a.emptyDir(c.Path)
		if err != nil {
			return Outcome{}, err
		}
		if empty {
			return a.accept(c, cur, a.author)
		}
	}
	return a.keepCopy(c, cur)
}

// replaceLeaf decides about anything where a file or symlink stands.
func (a *application) replaceLeaf(c *Change, cur *record) (Outcome, error) {
	if a.current(c, cur) {
		return a.accept(c, cur, a.author)
	}
	sameEntry := cur.Version == a.cmd.Index
	if cur.SameContent(c.Node) {
		if sameEntry {
			return Outcome{Code: Superseded, Version: cur.Version}, nil
		}
		return a.accept(c, cur, cur.author)
	}
	if sameEntry || c.Node.Kind == Dir {
		return a.keepCopy(c, cur)
	}
	wins, err := a.newcomerWins(c, cur)
	if err != nil {
		return Outcome{}, err
	}
	if !wins {
		return a.keepCopy(c, cur)
	}
	return a.moveAside(c, cur)
}

// current reports whether the author knew what stands at the path. A version equal to this entry's index is
// nothing that an author can have learned, except from its own command.
func (a *application) current(c *Change, cur *record) bool {
	if cur.Version == a.cmd.Index {
		_, mine := a.mine[c.Path]
		return mine
	}
	return c.Base == cur.Version
}

// accept puts the change's node at its path, where cur was. author is who wrote the content.
func (a *application) accept(c *Change, cur *record, author uint64) (Outcome, error) {
	r := record{Node: c.Node, author: author}
	if err := a.put(c.Path, cur, &r, Changed{Inline: c.Inline}); err != nil {
		return Outcome{}, err
	}
	return Outcome{Code: Accepted, Version: a.cmd.Index}, nil
}

// makeParents creates missing directories above c. blocked names the topmost one that is no directory.
func (a *application) makeParents(c *Change) (blocked string, err error) {
	dir, _ := Parent(c.Path)
	if _, ok := a.dirs[dir]; ok {
		return "", nil
	}
	var missing []string
	for dir != "" {
		if _, ok := a.dirs[dir]; ok {
			break
		}
		r, err := a.get(dir)
		if err != nil {
			return "", err
		}
		if r.Kind == Dir {
			a.dirs[dir] = struct{}{}
			break
		}
		if r.Kind != Absent {
			return dir, nil
		}
		missing = append(missing, dir)
		dir, _ = Parent(dir)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		n := Node{Kind: Dir, Mode: 0o755, UID: c.Node.UID, GID: c.Node.GID, MTime: c.Node.MTime}
		if err := a.put(missing[i], &record{}, &record{Node: n, author: a.author}, Changed{}); err != nil {
			return "", err
		}
	}
	return "", nil
}

// emptyDir reports whether dir has no children.
func (a *application) emptyDir(dir string) (bool, error) {
	empty := true
	from, to := childRange(dir)
	err := a.tx.Scan(from, to, func(_, _ []byte) error {
		empty = false
		return kv.ErrStop
	})
	return empty, err
}

func (a *application) get(path string) (record, error) {
	if r, ok := a.known[path]; ok {
		return r, nil
	}
	a.key = appendNodeKey(a.key[:0], path)
	return getRecord(a.tx, a.key)
}

// put writes r at path, where old was, with this entry's version and emits ev, completed.
func (a *application) put(path string, old, r *record, ev Changed) error {
	r.Version = a.cmd.Index
	a.key = appendNodeKey(a.key[:0], path)
	a.val = appendRecord(a.val[:0], r)
	if err := a.tx.Set(a.key, a.val); err != nil {
		return err
	}
	delete(a.known, path)
	if path != "" {
		a.counters.count(&old.Node, -1)
		a.counters.count(&r.Node, +1)
		a.mine[path] = struct{}{}
	}
	if r.Kind == Dir {
		a.dirs[path] = struct{}{}
	} else if old.Kind == Dir {
		if err := a.dropDir(path); err != nil {
			return err
		}
	}
	ev.Path, ev.Node = path, r.Node
	a.events = append(a.events, ev)
	return a.forgetDigest(path)
}

func (a *application) delete(path string, old *record) error {
	a.key = appendNodeKey(a.key[:0], path)
	if err := a.tx.Delete(a.key); err != nil {
		return err
	}
	if old.Kind == Dir {
		if err := a.dropDir(path); err != nil {
			return err
		}
	}
	delete(a.known, path)
	a.counters.count(&old.Node, -1)
	delete(a.mine, path)
	a.events = append(a.events, Changed{Path: path})
	return a.forgetDigest(path)
}

// dropDir forgets that path was a directory. Its memo goes too: one that comes back has its own.
func (a *application) dropDir(path string) error {
	delete(a.dirs, path)
	a.key = appendDigestKey(a.key[:0], path)
	return a.tx.Delete(a.key)
}

// forgetDigest removes the memos of all directories above path.
func (a *application) forgetDigest(path string) error {
	for {
		dir, ok := Parent(path)
		if !ok {
			return nil
		}
		if _, gone := a.stale[dir]; gone {
			return nil
		}
		a.stale[dir] = struct{}{}
		a.key = appendDigestKey(a.key[:0], dir)
		if err := a.tx.Delete(a.key); err != nil {
			return err
		}
		path = dir
	}
}
