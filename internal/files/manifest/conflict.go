package manifest

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"
)

// keptConflicts bounds the conflict log.
const keptConflicts = 10_000

// newcomerWins applies the policy to content that was changed against a stale base.
func (a *application) newcomerWins(c *Change, cur *record) (bool, error) {
	switch a.policy.Rule {
	case RuleNewest:
		return c.Node.MTime > cur.MTime, nil
	case RulePrefer:
		if a.authorName != a.policy.Prefer {
			return false, nil
		}
		holder, err := a.nodeName(cur.author)
		return holder != a.policy.Prefer, err
	}
	return false, nil
}

// keepCopy puts the change under a conflict name and leaves the path as it is.
func (a *application) keepCopy(c *Change, cur *record) (Outcome, error) {
	name, err := a.freeName(c.Path, a.authorName)
	if err != nil {
		return Outcome{}, err
	}
	r := record{Node: c.Node, author: a.author}
	if err := a.put(name, &record{}, &r, Changed{Inline: c.Inline}); err != nil {
		return Outcome{}, err
	}
	if err := a.logConflict(c.Path, name, a.authorName); err != nil {
		return Outcome{}, err
	}
	return Outcome{Code: Conflicted, Version: cur.Version, Copy: name}, nil
}

// moveAside puts what stands at the path under a conflict name and accepts the change.
func (a *application) moveAside(c *Change, cur *record) (Outcome, error) {
	holder, err := a.nodeName(cur.author)
	if err != nil {
		return Outcome{}, err
	}
	name, err := a.freeName(c.Path, holder)
	if err != nil {
		return Outcome{}, err
	}
	moved := *cur
	if err := a.put(name, &record{}, &moved, Changed{From: c.Path}); err != nil {
		return Outcome{}, err
	}
	if err := a.logConflict(c.Path, name, holder); err != nil {
		return Outcome{}, err
	}
	out, err := a.accept(c, cur, a.author)
	out.Copy = name
	return out, err
}

// divert puts an entry whose parent directory is blocked, by something that is not a directory, under
// blocked's conflict name, so that all of one command's entries below it land in one place. A directory
// alone holds no bytes and is not kept.
func (a *application) divert(c *Change, blocked string) (Outcome, error) {
	if c.Node.Kind == Dir {
		return Outcome{Code: Superseded}, nil
	}
	moved := *c
	for blocked != "" { // again if something of this very command is in the way there
		aside, err := a.asideDir(blocked)
		if err != nil {
			return Outcome{}, err
		}
		moved.Path = aside + moved.Path[len(blocked):]
		if len(moved.Path) > MaxPath {
			// Too long as it was: keep it next to the others under its last name.
			_, name := split(c.Path)
			moved.Path = Join(aside, name)
		}
		if blocked, err = a.makeParents(&moved); err != nil {
			return Outcome{}, err
		}
	}
	old, err := a.get(moved.Path)
	if err != nil {
		return Outcome{}, err
	}
	if old.Kind != Absent {
		if moved.Path, err = a.freeName(moved.Path, a.authorName); err != nil {
			return Outcome{}, err
		}
	}
	if _, err := a.accept(&moved, &record{}, a.author); err != nil {
		return Outcome{}, err
	}
	if err := a.logConflict(c.Path, moved.Path, a.authorName); err != nil {
		return Outcome{}, err
	}
	return Outcome{Code: Conflicted, Copy: moved.Path}, nil
}

// freeName finds a conflict name for path that nothing has yet.
func (a *application) freeName(path, author string) (string, error) {
	for n := uint64(0); ; n++ {
		name := conflictName(path, author, a.cmd.Time, a.ordinal(n))
		r, err := a.get(name)
		if err != nil || r.Kind == Absent {
			return name, err
		}
	}
}

// asideDir finds the conflict directory for entries below blocked: one that this command made, or a new one.
func (a *application) asideDir(blocked string) (string, error) {
	for n := uint64(0); ; n++ {
		name := conflictName(blocked, a.authorName, a.cmd.Time, a.ordinal(n))
		r, err := a.get(name)
		if err != nil || r.Kind == Absent {
			return name, err
		}
		if _, mine := a.mine[name]; mine && r.Kind == Dir {
			return name, nil
		}
	}
}

// ordinal is the number in the n-th name to try: none first, then such as no earlier conflict was given, so
// that many conflicts of one path within a second do not try each other's names.
func (a *application) ordinal(n uint64) uint64 {
	if n == 0 {
		return 0
	}
	return a.counters.Conflicts + n
}

func (a *application) nodeName(id uint64) (string, error) {
	if id == a.author {
		return a.authorName, nil
	}
	v, ok, err := a.tx.Get(authorKey(id))
	if err == nil && !ok {
		err = fmt.Errorf("author %d: not recorded", id)
	}
	return string(v), err
}

// logConflict records that copy keeps what node wrote for path. Each record carries a hash over itself and
// its predecessor, so two logs that agree at one record agree on all before it.
func (a *application) logConflict(path, copy, node string) error {
	a.counters.Conflicts++
	seq := a.counters.Conflicts
	v := appendConflict(nil, &Conflict{Path: path, Copy: copy, Node: node, Time: a.cmd.Time, Index: a.cmd.Index})
	a.counters.chain = chainHash(a.counters.chain, v)
	stored := append(bytes.Clone(a.counters.chain[:]), v...)
	if err := a.tx.Set(conflictKey(seq), stored); err != nil {
		return err
	}
	if seq <= keptConflicts {
		return nil
	}
	return a.tx.Delete(conflictKey(seq - keptConflicts))
}

type chain [16]byte

func chainHash(before chain, record []byte) chain {
	h := blake3.New()
	h.Write(before[:])
	h.Write(record)
	var out chain
	copy(out[:], h.Sum(nil))
	return out
}

func appendConflict(b []byte, c *Conflict) []byte {
	b = appendBytes(b, c.Path)
	b = appendBytes(b, c.Copy)
	b = appendBytes(b, c.Node)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Time))
	return binary.AppendUvarint(b, c.Index)
}

func decodeConflict(v []byte) (c Conflict, ch chain, err error) {
	d := decoder{b: v}
	copy(ch[:], d.take(len(ch)))
	c.Path = string(d.bytes(MaxPath))
	c.Copy = string(d.bytes(MaxPath + MaxName))
	c.Node = string(d.bytes(maxAuthor))
	if t := d.take(8); t != nil {
		c.Time = int64(binary.BigEndian.Uint64(t))
	}
	c.Index = d.uvarint()
	if err := d.done(); err != nil {
		return Conflict{}, chain{}, fmt.Errorf("conflict record: %w", err)
	}
	return c, ch, nil
}
