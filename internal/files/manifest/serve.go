package manifest

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// ServeDiff answers one learner's FetchDiff from view until it says good-bye. Digest memos make it cheap;
// without them it digests the whole tree first. It reads rw exactly up to the end of the exchange.
func ServeDiff(view kv.Reader, rw io.ReadWriter) error {
	s := &diffServer{r: view, f: newFrames(rw), digests: newDigester(view, nil)}
	if err := s.run(); err != nil {
		return fmt.Errorf("manifest: serve diff: %w", err)
	}
	return nil
}

type diffServer struct {
	r       kv.Reader
	f       *frames
	digests *digester
	body    []byte
}

func (s *diffServer) run() error {
	if err := s.greet(); err != nil {
		return err
	}
	for {
		if err := s.f.out.Flush(); err != nil {
			return err
		}
		kind, body, err := s.f.read()
		if err != nil {
			return err
		}
		switch kind {
		case frameBye:
			return nil
		case frameList:
		default:
			return fmt.Errorf("frame %q where a list was due", kind)
		}
		d := decoder{b: body}
		for len(d.b) > 0 {
			dir := string(d.bytes(MaxPath + MaxName))
			if d.err != nil {
				return d.err
			}
			if err := s.listing(dir); err != nil {
				return err
			}
		}
	}
}

func (s *diffServer) greet() error {
	d, err := s.f.expect(frameHello)
	if err != nil {
		return err
	}
	if v := d.byte(); d.err == nil && v != diffVersion {
		return fmt.Errorf("the learner speaks version %d, this node %d", v, diffVersion)
	}
	newest := d.uvarint()
	var theirs chain
	copy(theirs[:], d.take(len(theirs)))
	if err := d.done(); err != nil {
		return err
	}
	root, err := s.digests.dir("")
	if err != nil {
		return err
	}
	body := append([]byte(nil), root.state[:]...)
	var pairs []byte
	n := uint64(0)
	for _, span := range plainKeys {
		err := s.r.Scan(span[0], span[1], func(k, v []byte) error {
			pairs = appendBytes(appendBytes(pairs, k), v)
			n++
			return nil
		})
		if err != nil {
			return err
		}
	}
	oldest, next, err := s.conflictsFrom(newest, theirs)
	if err != nil {
		return err
	}
	body = append(binary.AppendUvarint(body, n), pairs...)
	body = binary.AppendUvarint(body, oldest)
	body = binary.AppendUvarint(body, next)
	if err := s.f.write(frameState, body); err != nil {
		return err
	}
	return s.records(next)
}

// conflictsFrom decides which records the learner lacks: those after its newest if that is ours too, else
// all. oldest is the first that is kept.
func (s *diffServer) conflictsFrom(newest uint64, theirs chain) (oldest, next uint64, err error) {
	c, err := readCounters(s.r)
	if err != nil {
		return 0, 0, err
	}
	oldest = 1
	if c.Conflicts > keptConflicts {
		oldest = c.Conflicts - keptConflicts + 1
	}
	if newest < oldest || newest > c.Conflicts {
		return oldest, oldest, nil
	}
	v, ok, err := s.r.Get(conflictKey(newest))
	if err != nil || !ok {
		return oldest, oldest, err
	}
	_, ours, err := decodeConflict(v)
	if err != nil || ours != theirs {
		return oldest, oldest, err
	}
	return oldest, newest + 1, nil
}

func (s *diffServer) records(from uint64) error {
	return s.stream(frameRecords, conflictKey(from), []byte{tagConflict + 1}, func(_, v []byte) error {
		s.body = appendBytes(s.body, v)
		return nil
	})
}

// listing sends dir's children.
func (s *diffServer) listing(dir string) error {
	from, to := childRange(dir)
	return s.stream(frameEntries, from, to, func(k, v []byte) error {
		name := k[len(from):]
		s.body = appendBytes(appendBytes(s.body, name), v)
		if len(v) > 0 && Kind(v[0]) == Dir {
			d, err := s.digests.dir(Join(dir, string(name)))
			if err != nil {
				return err
			}
			s.body = append(s.body, d.state[:]...)
		}
		return nil
	})
}

// stream sends a key range as frames of about frameTarget bytes, the last one flagged 0.
func (s *diffServer) stream(kind byte, from, to []byte, each func(k, v []byte) error) error {
	s.body = append(s.body[:0], 0)
	err := s.r.Scan(from, to, func(k, v []byte) error {
		if len(s.body) >= frameTarget {
			s.body[0] = 1
			if err := s.f.write(kind, s.body); err != nil {
				return err
			}
			s.body = append(s.body[:0], 0)
		}
		return each(k, v)
	})
	if err != nil {
		return err
	}
	return s.f.write(kind, s.body)
}
