package control

import (
	"fmt"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/api"
)

// checkName says what is wrong with the name of a node or group; empty: nothing.
func checkName(name string) string {
	if name == "" || len(name) > 63 {
		return "a name has 1 to 63 characters"
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return "a name is made of letters, digits, '.', '_' and '-', and begins with a letter or digit"
		}
	}
	return ""
}

const topologies = "star, chain, tree:K with K from 2 to 64, auto"

// acks are the values of a group's ack.
const acks = "local, quorum, all"

// checkZone says what is wrong with the name of a zone; a node may be in none.
func checkZone(zone string) string {
	if zone == "" || checkName(zone) == "" {
		return ""
	}
	return "the name of a zone has 1 to 63 letters, digits, '.', '_' and '-', and begins with a letter or digit"
}

// UnknownNode is the error of who names a node that the cluster does not have.
func (s *State) UnknownNode(op, name string) *api.Error {
	var names []string
	for _, n := range s.Nodes {
		if !n.Removed {
			names = append(names, n.Name)
		}
	}
	return unknown(op, name, "no such node", names, "lockstep node list shows them")
}

// UnknownGroup is the error of who names a group that the cluster does not have.
func (s *State) UnknownGroup(op, name string) *api.Error {
	var names []string
	for _, g := range s.Groups {
		if !g.Deleted {
			names = append(names, g.Name)
		}
	}
	return unknown(op, name, "no such group", names, "lockstep group list shows them")
}

func unknown(op, name, why string, names []string, hint string) *api.Error {
	if near := api.Nearest(name, names); near != "" {
		hint = "did you mean " + near + "? " + hint
	}
	return &api.Error{Code: api.CodeNotFound, Op: op, Subject: name, Why: why, Hint: hint}
}

// checkSettings fills in defaults and refuses what nobody implements.
func checkSettings(s *State, g *Group) *api.Error {
	refuse := func(what, value, allowed string) *api.Error {
		return &api.Error{Code: api.CodeUsage, Op: "dir create", Subject: g.Name,
			Why: "unknown " + what + " " + value, Hint: "use one of: " + allowed}
	}
	switch g.Ack {
	case "":
		g.Ack = "quorum"
	case "local", "quorum", "all":
	default:
		return refuse("ack", g.Ack, acks)
	}
	switch g.Mode {
	case "":
		g.Mode = "readwrite"
	case "readwrite":
	case "readonly":
		return &api.Error{Code: api.CodeUsage, Op: "dir create", Subject: g.Name, Why: "read-only members are not built yet",
			Hint: "leave --mode out"}
	default:
		return refuse("mode", g.Mode, "readwrite")
	}
	if g.Topology == "" {
		g.Topology = "star"
	}
	if _, ok := parseTopology(g.Topology); !ok {
		return refuse("topology", g.Topology, topologies)
	}
	if name, ok := strings.CutPrefix(g.Conflict, "prefer:"); ok {
		if _, known := s.NodeNamed(name); !known {
			return s.UnknownNode("dir create", name)
		}
		return nil
	}
	switch g.Conflict {
	case "":
		g.Conflict = "keep-both"
	case "keep-both", "first", "newest":
	default:
		return refuse("conflict policy", g.Conflict, "keep-both, first, newest, prefer:NODE")
	}
	return nil
}

// checkBinding finds the node and refuses a path that is not absolute or lies in, or around, another binding
// of that node.
func (x *execution) checkBinding(op, node, dir string) (*Node, string, *api.Error) {
	n, ok := x.s.NodeNamed(node)
	if !ok {
		return nil, "", x.s.UnknownNode(op, node)
	}
	if !path.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return nil, "", &api.Error{Code: api.CodeUsage, Op: op, Subject: node + ":" + dir, Why: "the path is not absolute",
			Hint: "give the whole path, from /"}
	}
	// Commands are JSON, which has no other bytes; what came in its place names another directory.
	if !utf8.ValidString(dir) || strings.ContainsRune(dir, utf8.RuneError) {
		return nil, "", &api.Error{Code: api.CodeUsage, Op: op, Subject: node + ":" + dir, Why: "the path of a binding must be UTF-8",
			Hint: "choose or rename the directory; names below it may hold any byte"}
	}
	dir = path.Clean(dir)
	if dir == "/" {
		return nil, "", &api.Error{Code: api.CodeUsage, Op: op, Subject: node + ":" + dir, Why: "the root directory cannot be kept in step",
			Hint: "choose a directory below it"}
	}
	for _, g := range x.s.Groups {
		m, ok := g.Member(n.ID)
		if !ok || g.Deleted || g.Kind != KindFiles {
			continue
		}
		if within(dir, m.Path) || within(m.Path, dir) {
			return nil, "", &api.Error{Code: api.CodeConflict, Op: op, Subject: node + ":" + dir,
				Why:  "it overlaps " + m.Path + " of group " + g.Name,
				Hint: "bindings of one node must not lie inside each other; choose another directory"}
		}
	}
	return n, dir, nil
}

func within(dir, base string) bool {
	return dir == base || strings.HasPrefix(dir, base+"/")
}

// Bounds of SetGroup. Below minInSyncAfter, a member would leave the set for every pause of a busy machine.
const (
	minInSyncAfter = time.Second
	maxInSyncAfter = time.Hour

	minCheckEvery = time.Second
	maxCheckEvery = 24 * time.Hour
)

// checkRepairAfter refuses what would take a restart for a loss.
func checkRepairAfter(op, subject string, after time.Duration) *api.Error {
	if after == 0 || after >= MinRepairAfter {
		return nil
	}
	return &api.Error{Code: api.CodeUsage, Op: op, Subject: subject, Why: fmt.Sprintf("repair-after %s is too short", after),
		Hint: fmt.Sprintf("choose at least %s, or off: a restart must not be taken for a loss", MinRepairAfter)}
}

func (x *execution) setCluster(c *SetCluster) (Result, error) {
	if e := checkRepairAfter("cluster set", "cluster", c.RepairAfter); e != nil || c.RepairAfter == x.s.Cluster.RepairAfter {
		return Result{Error: e}, nil
	}
	x.s.Cluster.RepairAfter = c.RepairAfter
	x.what = fmt.Sprintf("cluster: repair-after %s", c.RepairAfter)
	return Result{}, x.put([]byte{tagCluster}, x.s.Cluster)
}

func (x *execution) setGroup(c *SetGroup) (Result, error) {
	const op = "group set"
	g, ok := x.s.GroupNamed(c.Group)
	if !ok {
		return Result{Error: x.s.UnknownGroup(op, c.Group)}, nil
	}
	var set []string
	change := func(setting, to string) { set = append(set, setting+" "+to) }
	if c.Topology != "" && c.Topology != g.Topology {
		if _, ok := parseTopology(c.Topology); !ok {
			return refuse(api.CodeUsage, op, g.Name, "unknown topology "+c.Topology, "use one of: "+topologies), nil
		}
		g.Topology = c.Topology
		change("topology", c.Topology)
	}
	switch c.Ack {
	case "", g.Ack:
	case "local", "quorum", "all":
		g.Ack = c.Ack
		change("ack", c.Ack)
	default:
		return refuse(api.CodeUsage, op, g.Name, "unknown ack "+c.Ack, "use one of: "+acks), nil
	}
	if c.InSyncAfter != 0 && c.InSyncAfter != g.InSyncBound() {
		if c.InSyncAfter < minInSyncAfter || c.InSyncAfter > maxInSyncAfter {
			return refuse(api.CodeUsage, op, g.Name, fmt.Sprintf("%s is no time after which a member leaves the in-sync set", c.InSyncAfter),
				fmt.Sprintf("give one from %s to %s", minInSyncAfter, maxInSyncAfter)), nil
		}
		g.InSyncAfter = c.InSyncAfter
		change("in-sync-after", c.InSyncAfter.String())
	}
	if c.CheckEvery != 0 && c.CheckEvery != g.CheckInterval() {
		if c.CheckEvery < minCheckEvery || c.CheckEvery > maxCheckEvery {
			return refuse(api.CodeUsage, op, g.Name, fmt.Sprintf("replicas cannot be compared every %s", c.CheckEvery),
				fmt.Sprintf("give an interval from %s to %s", minCheckEvery, maxCheckEvery)), nil
		}
		g.CheckEvery = c.CheckEvery
		change("check-every", c.CheckEvery.String())
	}
	if after := c.RepairAfter; after != nil && (g.RepairAfter == nil || *after != *g.RepairAfter) {
		if e := checkRepairAfter(op, g.Name, *after); e != nil {
			return Result{Error: e}, nil
		}
		g.RepairAfter = after
		change("repair-after", after.String())
	}
	if c.InheritRepair && g.RepairAfter != nil {
		g.RepairAfter = nil
		change("repair-after", "as the cluster's")
	}
	if len(set) == 0 {
		return Result{Group: g.ID}, nil
	}
	x.what = fmt.Sprintf("group %s: %s", g.Name, strings.Join(set, ", "))
	return Result{Group: g.ID}, x.put(idKey(tagGroup, g.ID), *g)
}
