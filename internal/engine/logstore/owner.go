package logstore

import (
	"encoding/binary"
	"fmt"
)

// Owner is the node whose logs a store keeps: what they promise, they promise in its name. Every head says it, so that
// the store of another node is not taken for one's own. The zero Owner is nobody.
type Owner struct {
	Cluster [16]byte
	Node    uint64
}

func (o Owner) String() string { return fmt.Sprintf("node %d of cluster %x", o.Node, o.Cluster) }

// ForeignError refuses a store that another node has written; nothing in it was changed.
type ForeignError struct {
	Is   Owner // whose it is
	Want Owner // who opens it
}

func (e *ForeignError) Error() string { return fmt.Sprintf("it is of %s, not of %s", e.Is, e.Want) }

// belongs refuses what another node has written. What was never written to, or whose heads are gone, is nobody's.
func (rc *recovery) belongs(to Owner) error {
	if to == (Owner{}) || rc.owner == (Owner{}) || rc.owner == to {
		return nil
	}
	return &ForeignError{Is: rc.owner, Want: to}
}

func (b *builder) owner(o Owner) {
	at := b.open(secOwner, 0)
	b.buf = append(b.buf, o.Cluster[:]...)
	b.numbers(o.Node)
	b.close(at, 0)
}

func parseOwner(body []byte) (o Owner, err error) {
	if copy(o.Cluster[:], body) < len(o.Cluster) {
		return Owner{}, fmt.Errorf("%w: owner", errRecord)
	}
	node, n := binary.Uvarint(body[len(o.Cluster):])
	if n <= 0 || len(o.Cluster)+n != len(body) {
		return Owner{}, fmt.Errorf("%w: owner", errRecord)
	}
	o.Node = node
	return o, nil
}
