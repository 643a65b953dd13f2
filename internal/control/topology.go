package control

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
)

// Feed is where a member that observes is to be fed from: nodes, the best first. Each of them is nearer to the voters
// than the member itself, so whatever mix of upstreams and fallbacks the members of a group are at, there is no loop.
type Feed struct {
	Upstream  uint64
	Fallbacks []uint64 // at most two; fewer only if the group has too few voters
}

const (
	// MaxHops is how far from a voter an observer may be.
	MaxHops = 8
	// maxFan is the largest k of tree:k.
	maxFan = 64
	// autoFan is the k of auto: a star of up to as many observers, and a tree of four levels for a few thousand.
	autoFan = 8
)

// parseTopology returns how many members one observer feeds at most; 0: voters feed all of them (star).
func parseTopology(s string) (fan int, ok bool) {
	switch s {
	case "", "star":
		return 0, true
	case "chain":
		return 1, true
	case "auto":
		return autoFan, true
	}
	k, isTree := strings.CutPrefix(s, "tree:")
	fan, err := strconv.Atoi(k)
	return fan, isTree && err == nil && fan >= 2 && fan <= maxFan
}

// Feeds assigns every observer of g, by node, where it is fed from. It is a function of the state alone, so every node
// derives the same without asking.
//
// Observers sit in numbered seats, zone by zone: the first ones (as many as the fan-out) are fed by voters, in a zone
// without voters only one, and each feeds the next ones in order. A chain is a tree of fan-out one; where a tree would
// become deeper than MaxHops the next one begins at the voters. A member keeps its seat while the group has that many,
// so a change of one member moves that one, those that it fed, and the one that takes its seat.
func (s *State) Feeds(g *Group) map[uint64]Feed {
	return feeds(g, s.zoneOf)
}

func feeds(g *Group, zone func(node uint64) string) map[uint64]Feed {
	fan, _ := parseTopology(g.Topology)
	members := seated(g.Members, zone)
	voters := g.Voters()
	out := make(map[uint64]Feed, len(members))
	if len(voters) == 0 {
		return out
	}
	for zoneName, rows := range rowsOf(members, zone) {
		width := fan
		local := slices.ContainsFunc(voters, func(v Member) bool { return zone(v.Node) == zoneName })
		if zoneName != "" && !local {
			width = min(fan, 1)
		}
		t := tree{seats: rows, width: width, fan: fan}
		for i, m := range rows {
			out[m.Node] = t.feed(i, rankVoters(g.ID, m, voters, zone))
		}
	}
	return out
}

// rowsOf lists each zone's observers by seat.
func rowsOf(members []Member, zone func(uint64) string) map[string][]Member {
	rows := map[string][]Member{}
	for _, m := range members {
		if m.Role == RoleObserver {
			rows[zone(m.Node)] = append(rows[zone(m.Node)], m)
		}
	}
	for _, row := range rows {
		slices.SortFunc(row, func(a, b Member) int { return cmp.Compare(a.Seat, b.Seat) })
	}
	return rows
}

// seated returns the members with seats: in a zone of n observers 1 to n. Who has one of these keeps it; the others
// take what is free, in the order in which they came.
func seated(members []Member, zone func(uint64) string) []Member {
	out := slices.Clone(members)
	count := map[string]int{}
	for _, m := range out {
		if m.Role == RoleObserver {
			count[zone(m.Node)]++
		}
	}
	taken := map[string]map[int]bool{}
	for z := range count {
		taken[z] = map[int]bool{}
	}
	for i := range out {
		m, z := &out[i], zone(out[i].Node)
		if m.Role != RoleObserver || m.Seat > count[z] || taken[z][m.Seat] {
			m.Seat = 0
		} else if m.Seat > 0 {
			taken[z][m.Seat] = true
		}
	}
	next := map[string]int{}
	for i := range out {
		m, z := &out[i], zone(out[i].Node)
		for m.Role == RoleObserver && m.Seat == 0 {
			if next[z]++; !taken[z][next[z]] {
				m.Seat = next[z]
			}
		}
	}
	return out
}

// rankVoters orders voters for a member: those of its zone first, then by a hash that spreads members and moves few
// when voters change.
func rankVoters(group uint64, m Member, voters []Member, zone func(uint64) string) []uint64 {
	type ranked struct {
		node uint64
		far  bool
		hash uint64
	}
	all := make([]ranked, len(voters))
	for i, v := range voters {
		all[i] = ranked{v.Node, zone(v.Node) != zone(m.Node), mix(group, m.Replica, v.Replica)}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if a.far != b.far {
			if a.far {
				return 1
			}
			return -1
		}
		return cmp.Compare(b.hash, a.hash)
	})
	nodes := make([]uint64, len(all))
	for i, r := range all {
		nodes[i] = r.node
	}
	return nodes
}

func mix(words ...uint64) uint64 {
	h := fnv.New64a()
	for _, w := range words {
		h.Write(binary.LittleEndian.AppendUint64(nil, w))
	}
	x := h.Sum64()
	x ^= x >> 32 // FNV's high bits alone hardly depend on the last bytes
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

// tree is one zone's seats, cut into blocks that are MaxHops deep.
type tree struct {
	seats      []Member
	width, fan int // fed by voters, fed by each observer; fan 0: all are fed by voters
}

// block is how many seats a tree of full depth has.
func (t tree) block() int {
	n, level := 0, t.width
	for range MaxHops {
		n += level
		if level > len(t.seats) {
			break // more than there are, whatever follows
		}
		level *= t.fan
	}
	return n
}

// level returns where the level of seat r of a block begins, and how many seats it has if it is full.
func (t tree) level(r int) (start, size int) {
	size = t.width
	for r >= start+size {
		start += size
		size *= t.fan
	}
	return start, size
}

// parent of seat r of a block; -1: a voter.
func (t tree) parent(r int) int {
	if r < t.width {
		return -1
	}
	return (r - t.width) / t.fan
}

func (t tree) feed(seat int, voters []uint64) Feed {
	if t.fan == 0 || seat%t.block() < t.width {
		return Feed{Upstream: voters[0], Fallbacks: voters[1:min(3, len(voters))]}
	}
	base := seat / t.block() * t.block()
	r := seat - base
	p := t.parent(r)
	f := Feed{Upstream: t.seats[base+p].Node}
	// The first fallback is on the level of the upstream, a different one for each that it feeds; on a level of its
	// own the upstream's upstream.
	start, size := t.level(p)
	size = min(size, len(t.seats)-base-start)
	second := voters
	switch child := (r - t.width) % t.fan; {
	case size > 1:
		uncle := start + (p-start+1+child%(size-1))%size
		f.Fallbacks = append(f.Fallbacks, t.seats[base+uncle].Node)
	case t.parent(p) >= 0:
		f.Fallbacks = append(f.Fallbacks, t.seats[base+t.parent(p)].Node)
	default:
		f.Fallbacks, second = append(f.Fallbacks, voters[0]), voters[1:]
	}
	f.Fallbacks = append(f.Fallbacks, second[:min(1, len(second))]...)
	return f
}
