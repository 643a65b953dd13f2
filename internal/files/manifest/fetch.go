package manifest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// FetchDiff makes the state that local holds equal to that of the ServeDiff at the other end: put and del
// are told every write that takes, byte for byte. They may act on local at once. Only directories whose
// digests differ are listed. On an error the writes so far are a mixture: throw them away, or fetch again
// on top of them.
func FetchDiff(local kv.Reader, rw io.ReadWriter, put func(key, value []byte) error, del func(key []byte) error) (DiffStats, error) {
	l := &learner{r: local, f: newFrames(rw), digests: newDigester(local, nil), put: put, del: del}
	err := l.run()
	l.stats.Sent, l.stats.Received = l.f.sent, l.f.received
	if err != nil {
		return l.stats, fmt.Errorf("manifest: fetch diff: %w", err)
	}
	return l.stats, nil
}

type learner struct {
	r       kv.Reader
	f       *frames
	digests *digester
	put     func(key, value []byte) error
	del     func(key []byte) error
	differ  []string // directories to compare, a stack
	stats   DiffStats
}

func (l *learner) run() error {
	ours, err := l.digests.dir("")
	if err != nil {
		return err
	}
	theirs, err := l.greet()
	if err != nil {
		return err
	}
	if ours.state != theirs {
		l.differ = append(l.differ, "")
	}
	for len(l.differ) > 0 {
		if err := l.round(); err != nil {
			return err
		}
	}
	if err := l.f.write(frameBye, nil); err != nil {
		return err
	}
	return l.f.out.Flush()
}

// greet exchanges all but the entries and returns the source's root digest.
func (l *learner) greet() (root [32]byte, err error) {
	c, err := readCounters(l.r)
	if err != nil {
		return root, err
	}
	hello := binary.AppendUvarint([]byte{diffVersion}, c.Conflicts)
	if err := l.f.write(frameHello, append(hello, c.chain[:]...)); err != nil {
		return root, err
	}
	if err := l.f.out.Flush(); err != nil {
		return root, err
	}
	d, err := l.f.expect(frameState)
	if err != nil {
		return root, err
	}
	copy(root[:], d.take(len(root)))
	want := map[string][]byte{}
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		k := d.bytes(MaxPath)
		want[string(k)] = bytes.Clone(d.bytes(maxFrame))
	}
	oldest, next := d.uvarint(), d.uvarint()
	if err := d.done(); err != nil {
		return root, err
	}
	if err := l.plain(want); err != nil {
		return root, err
	}
	return root, l.conflicts(oldest, next)
}

// plain makes the keys outside entries and conflicts equal to want.
func (l *learner) plain(want map[string][]byte) error {
	var gone [][]byte
	for _, span := range plainKeys {
		err := l.r.Scan(span[0], span[1], func(k, v []byte) error {
			if w, ok := want[string(k)]; !ok {
				gone = append(gone, bytes.Clone(k))
			} else if bytes.Equal(v, w) {
				delete(want, string(k))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, k := range gone {
		if err := l.del(k); err != nil {
			return err
		}
	}
	for k, v := range want {
		if !plainKey([]byte(k)) {
			return fmt.Errorf("key %x in a state frame: %w", k, errTruncated)
		}
		if err := l.put([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

func plainKey(k []byte) bool {
	for _, span := range plainKeys {
		if bytes.Compare(k, span[0]) >= 0 && bytes.Compare(k, span[1]) < 0 {
			return true
		}
	}
	return false
}

// conflicts removes records below oldest and from next on, then stores what follows.
func (l *learner) conflicts(oldest, next uint64) error {
	if oldest == 0 || next < oldest {
		return fmt.Errorf("conflict numbers %d, %d: %w", oldest, next, errTruncated)
	}
	if err := l.deleteRange([]byte{tagConflict}, conflictKey(oldest)); err != nil {
		return err
	}
	if err := l.deleteRange(conflictKey(next), []byte{tagConflict + 1}); err != nil {
		return err
	}
	for more := true; more; {
		d, err := l.f.expect(frameRecords)
		if err != nil {
			return err
		}
		more = d.byte() != 0
		for len(d.b) > 0 {
			v := d.bytes(maxFrame)
			if _, _, err := decodeConflict(v); err != nil {
				return err
			}
			if err := l.put(conflictKey(next), v); err != nil {
				return err
			}
			next++
		}
		if d.err != nil {
			return d.err
		}
	}
	return nil
}

// round asks for as many directories as fit into one request and merges what comes.
func (l *learner) round() error {
	var body []byte
	n := len(l.differ)
	for n > 0 && len(body) < listTarget {
		n--
		body = appendBytes(body, l.differ[n])
	}
	ask := append([]string(nil), l.differ[n:]...)
	l.differ = l.differ[:n]
	if err := l.f.write(frameList, body); err != nil {
		return err
	}
	if err := l.f.out.Flush(); err != nil {
		return err
	}
	for i := len(ask) - 1; i >= 0; i-- {
		if err := l.merge(ask[i]); err != nil {
			return err
		}
	}
	return nil
}

// entry is one child as the source has it.
type entry struct {
	value []byte
	state [32]byte // directories
}

// merge makes dir's children equal to the listing that comes next, frame by frame, and queues the child
// directories that differ.
func (l *learner) merge(dir string) error {
	l.stats.Dirs++
	if err := l.del(appendDigestKey(nil, dir)); err != nil {
		return err
	}
	from, end := childRange(dir)
	prefix := len(from)
	last := ""
	for more := true; more; {
		d, err := l.f.expect(frameEntries)
		if err != nil {
			return err
		}
		more = d.byte() != 0
		names, theirs, err := readEntries(&d, last)
		if err != nil {
			return fmt.Errorf("listing of %q: %w", dir, err)
		}
		to := end
		if more {
			if len(names) == 0 {
				return fmt.Errorf("listing of %q: %w", dir, errTruncated)
			}
			last = names[len(names)-1]
			to = append(append(bytes.Clone(end[:prefix-2]), 0, 0), last...)
			to = append(to, 0)
		}
		if err := l.mergeRange(dir, from, to, prefix, names, theirs); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func readEntries(d *decoder, last string) (names []string, entries map[string]entry, err error) {
	entries = map[string]entry{}
	for len(d.b) > 0 {
		name := string(d.bytes(MaxName))
		var e entry
		e.value = bytes.Clone(d.bytes(maxFrame))
		if d.err != nil {
			return nil, nil, d.err
		}
		r, _, err := decodeRecord(e.value)
		if err != nil {
			return nil, nil, err
		}
		if r.Kind == Dir {
			copy(e.state[:], d.take(len(e.state)))
		}
		if !validName(name) || name <= last {
			return nil, nil, fmt.Errorf("name %q after %q: %w", name, last, errTruncated)
		}
		last = name
		names = append(names, name)
		entries[name] = e
	}
	return names, entries, d.err
}

// mergeRange makes the keys in [from, to), children of dir, equal to theirs.
func (l *learner) mergeRange(dir string, from, to []byte, prefix int, names []string, theirs map[string]entry) error {
	var goneKeys [][]byte
	var goneDirs []string
	same := map[string]bool{} // name → was a directory here too
	err := l.r.Scan(from, to, func(k, v []byte) error {
		name := string(k[prefix:])
		e, ok := theirs[name]
		wasDir := len(v) > 0 && Kind(v[0]) == Dir
		if !ok {
			goneKeys = append(goneKeys, bytes.Clone(k))
		} else if bytes.Equal(v, e.value) {
			same[name] = wasDir
		}
		if wasDir && (!ok || Kind(e.value[0]) != Dir) {
			goneDirs = append(goneDirs, Join(dir, name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range goneKeys {
		l.stats.Deletes++
		if err := l.del(k); err != nil {
			return err
		}
	}
	for _, d := range goneDirs {
		if err := l.deleteTree(d); err != nil {
			return err
		}
	}
	return l.writeEntries(dir, names, theirs, same)
}

func (l *learner) writeEntries(dir string, names []string, theirs map[string]entry, same map[string]bool) error {
	for _, name := range names {
		e := theirs[name]
		path := Join(dir, name)
		if _, ok := same[name]; !ok {
			l.stats.Puts++
			if err := l.put(appendNodeKey(nil, path), e.value); err != nil {
				return err
			}
		}
		if Kind(e.value[0]) != Dir {
			continue
		}
		ours, err := l.digests.dir(path)
		if err != nil {
			return err
		}
		if ours.state != e.state {
			l.differ = append(l.differ, path)
		}
	}
	return nil
}

// deleteTree removes everything below dir, memos included.
func (l *learner) deleteTree(dir string) error {
	from, to := subtree(dir)
	if err := l.deleteRange(from, to); err != nil {
		return err
	}
	memo := appendDigestKey(nil, dir)
	if err := l.del(memo); err != nil {
		return err
	}
	return l.deleteRange(append(bytes.Clone(memo), 0), append(bytes.Clone(memo), 1))
}

// deleteRange removes existing keys one by one: del has no ranges, and what it removes may still be scanned.
func (l *learner) deleteRange(from, to []byte) error {
	const step = 4096
	for bytes.Compare(from, to) < 0 {
		var keys [][]byte
		err := l.r.Scan(from, to, func(k, _ []byte) error {
			keys = append(keys, bytes.Clone(k))
			if len(keys) == step {
				return kv.ErrStop
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k[0] == tagNode {
				l.stats.Deletes++
			}
			if err := l.del(k); err != nil {
				return err
			}
		}
		if len(keys) < step {
			return nil
		}
		from = append(keys[step-1], 0)
	}
	return nil
}
