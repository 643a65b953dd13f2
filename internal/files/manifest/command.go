package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Commands start with one byte that says which.
const (
	cmdBatch  = 1
	cmdPolicy = 2
)

// Results start with one byte that says which.
const (
	resOutcomes  = 1
	resMalformed = 2
)

// ErrMalformed is what DecodeOutcomes returns when the machine could not read the command.
var ErrMalformed = errors.New("manifest: malformed command")

// maxAuthor bounds a node name inside a command.
const maxAuthor = 255

// Batch is the command that the files agents propose: changes of one node, applied in order.
type Batch struct {
	Author  string // node name
	Changes []Change
}

// EncodeBatch returns the command's payload.
func EncodeBatch(b Batch) []byte {
	size := 16 + len(b.Author)
	for i := range b.Changes {
		size += 80 + len(b.Changes[i].Path) + len(b.Changes[i].Node.Target) + len(b.Changes[i].Inline)
	}
	p := make([]byte, 0, size)
	p = append(p, cmdBatch)
	p = appendBytes(p, b.Author)
	p = binary.AppendUvarint(p, uint64(len(b.Changes)))
	for i := range b.Changes {
		c := &b.Changes[i]
		p = appendBytes(p, c.Path)
		p = binary.AppendUvarint(p, c.Base)
		p = appendNode(p, &c.Node)
		switch {
		case c.SameContent:
			p = append(p, 2)
		case c.Inline == nil:
			p = append(p, 0)
		default:
			p = appendBytes(append(p, 1), c.Inline)
		}
	}
	return p
}

// DecodeBatch is the inverse of EncodeBatch; Inline aliases payload. Paths and nodes are not validated.
func DecodeBatch(payload []byte) (Batch, error) {
	d := decoder{b: payload}
	if d.byte() != cmdBatch {
		return Batch{}, fmt.Errorf("manifest: decode batch: %w", errTruncated)
	}
	var b Batch
	b.Author = string(d.bytes(maxAuthor))
	n := d.uvarint()
	const minChange = 4 // path length, base, kind, inline flag
	if d.err == nil && n > uint64(len(d.b)/minChange) {
		d.fail()
	}
	if d.err == nil {
		b.Changes = make([]Change, n)
	}
	for i := range b.Changes {
		c := &b.Changes[i]
		c.Path = string(d.bytes(len(d.b))) // a long one is refused, not the batch
		c.Base = d.uvarint()
		c.Node = d.node()
		switch d.byte() {
		case 0:
		case 1:
			c.Inline = d.bytes(len(d.b))
		case 2:
			c.SameContent = true
		default:
			d.fail()
		}
		if d.err != nil {
			break
		}
	}
	if err := d.done(); err != nil {
		return Batch{}, fmt.Errorf("manifest: decode batch: %w", err)
	}
	return b, nil
}

// EncodePolicy returns the payload of the command that sets the group's conflict policy.
func EncodePolicy(p Policy) []byte {
	return append([]byte{cmdPolicy}, p.String()...)
}

// encodeOutcomes packs outcomes; runs of plain Accepted at index, the usual case, take two bytes.
func encodeOutcomes(index uint64, outs []Outcome) []byte {
	b := append(make([]byte, 0, 32), resOutcomes)
	b = binary.AppendUvarint(b, index)
	b = binary.AppendUvarint(b, uint64(len(outs)))
	for i := 0; i < len(outs); {
		run := i
		for run < len(outs) && outs[run] == (Outcome{Code: Accepted, Version: index}) {
			run++
		}
		b = binary.AppendUvarint(b, uint64(run-i))
		if i = run; i == len(outs) {
			break
		}
		b = append(b, byte(outs[i].Code))
		b = binary.AppendUvarint(b, outs[i].Version)
		b = appendBytes(b, outs[i].Copy)
		i++
	}
	return b
}

// maxOutcomes bounds what DecodeOutcomes makes room for.
const maxOutcomes = 1 << 20

// DecodeOutcomes reads the result of a Batch: one outcome a change, same order.
func DecodeOutcomes(result []byte) ([]Outcome, error) {
	d := decoder{b: result}
	switch d.byte() {
	case resOutcomes:
	case resMalformed:
		return nil, ErrMalformed
	default:
		return nil, fmt.Errorf("manifest: decode outcomes: %w", errTruncated)
	}
	index := d.uvarint()
	n := d.uvarint()
	if n > maxOutcomes {
		d.fail()
		n = 0
	}
	outs := make([]Outcome, 0, min(n, 4096))
	for uint64(len(outs)) < n && d.err == nil {
		run := d.uvarint()
		if run > n-uint64(len(outs)) {
			d.fail()
			break
		}
		for range run {
			outs = append(outs, Outcome{Code: Accepted, Version: index})
		}
		if uint64(len(outs)) == n {
			break
		}
		o := Outcome{Code: OutcomeCode(d.byte()), Version: d.uvarint(), Copy: string(d.bytes(MaxPath + MaxName))}
		if o.Code > Refused {
			d.fail()
		}
		outs = append(outs, o)
	}
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("manifest: decode outcomes: %w", err)
	}
	return outs, nil
}

// Policy says who keeps the name when two nodes changed one path at once.
type Policy struct {
	Rule   Rule
	Prefer string // node name, for RulePrefer
}

type Rule uint8

const (
	RuleKeepBoth Rule = iota // the first in log order keeps the name
	RuleFirst                // the same, said explicitly
	RuleNewest               // the later mtime
	RulePrefer               // Policy.Prefer's version
)

func (p Policy) String() string {
	switch p.Rule {
	case RuleFirst:
		return "first"
	case RuleNewest:
		return "newest"
	case RulePrefer:
		return "prefer:" + p.Prefer
	}
	return "keep-both"
}

// ParsePolicy reads keep-both (also ""), first, newest or prefer:NODE.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "", "keep-both":
		return Policy{}, nil
	case "first":
		return Policy{Rule: RuleFirst}, nil
	case "newest":
		return Policy{Rule: RuleNewest}, nil
	}
	if node, ok := strings.CutPrefix(s, "prefer:"); ok && node != "" && len(node) <= maxAuthor {
		return Policy{Rule: RulePrefer, Prefer: node}, nil
	}
	return Policy{}, fmt.Errorf("conflict policy %q: want keep-both, first, newest or prefer:NODE", s)
}
