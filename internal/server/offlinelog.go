package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// OfflineLog looks at the log store of a node that is stopped. It changes nothing in the data directory.
type OfflineLog struct {
	Data string
	// Progress gets how much was read; nil: nobody watches.
	Progress func(api.Progress)
}

// openedLog is the log of a data directory that is held for as long as somebody looks.
type openedLog struct {
	*logstore.Inspection
	names groupNames
	lock  *os.File
	read  uint64
}

func (o *openedLog) Close() error { return errors.Join(o.Inspection.Close(), o.lock.Close()) }

func (l OfflineLog) open(ctx context.Context, op string) (*openedLog, error) {
	lock, err := holdStopped(op, l.Data)
	if err != nil {
		return nil, err
	}
	o := &openedLog{lock: lock}
	if err := o.inspect(ctx, op, l); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return o, nil
}

func (o *openedLog) inspect(ctx context.Context, op string, l OfflineLog) error {
	path := filepath.Join(l.Data, "log")
	disk, err := logstore.ReadDisk(path, func(n int) error {
		o.read += uint64(n)
		if l.Progress != nil {
			l.Progress(api.Progress{What: "reading the log", Done: o.read, Unit: "bytes"})
		}
		return ctx.Err()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return missingLog(op, l.Data, path)
	}
	if err == nil {
		o.Inspection, err = logstore.Inspect(disk)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return &api.Error{Code: api.CodeFailed, Op: op, Subject: path, Why: err.Error(), Hint: "use the version of lockstep that wrote it, or see to the disk"}
	}
	o.names = readNames(l.Data)
	return nil
}

// holdStopped keeps a node from starting in a data directory while somebody looks at it. Two may look at a time.
func holdStopped(op, path string) (*os.File, error) {
	none := func(why string) error {
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: path, Why: why, Hint: "give the data directory of a node that ran before with --data"}
	}
	if st, err := os.Stat(path); err != nil {
		return nil, none(err.Error())
	} else if !st.IsDir() {
		return nil, none("it is not a directory")
	}
	lock, err := os.Open(filepath.Join(path, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none("it is not a data directory: no node ever ran in it")
	}
	if err != nil {
		return nil, &api.Error{Code: api.CodeFailed, Op: op, Subject: path, Why: err.Error(), Hint: "run as the user that the node runs as"}
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&api.Error{Code: api.CodeUnavailable, Op: op, Subject: path, Why: "a lockstep process uses this data directory",
			Hint: "stop the node first; while it runs, lockstep status and group show tell about its log"}, lock.Close())
	}
	return lock, nil
}

// missingLog tells a log that is lost from one that never was.
func missingLog(op, data, path string) error {
	var h hint
	if err := readJSON(filepath.Join(data, hintFile), &h); err == nil && h.Opened {
		return &api.Error{Code: api.CodeDamage, Op: op, Subject: path, Why: "it was there before and is gone",
			Hint: "this node's copy cannot be trusted; move the data directory away and join again with --join TOKEN --replace"}
	}
	return &api.Error{Code: api.CodeNotFound, Op: op, Subject: path, Why: "there is no log: this is not the data directory of a node that ran before",
		Hint: "give a node's data directory with --data"}
}

// groupNames are what the node's copy of the control state says of the groups.
type groupNames struct {
	groups map[uint64]*control.Group
	owned  map[uint64]replica.Standing // group in which this node votes → where its state stands
	err    error                       // why nothing is known
	data   string
	self   string // the node's name; NODE: not known
	older  string // why the state store is of an earlier moment; "": it is not
}

// readNames reads them from the state store, without changing it.
func readNames(data string) (n groupNames) {
	n.groups, n.data, n.self = map[uint64]*control.Group{}, data, "NODE"
	view, err := kv.ViewPebble(filepath.Join(data, "state"), kv.PebbleOptions{Log: slog.New(slog.DiscardHandler), OnError: func(error) {}})
	if err != nil {
		n.err = err
		return n
	}
	st, err := loadControl(view)
	if err == nil {
		n.owned, err = ownedStates(view)
	}
	var h hint
	if err == nil {
		err = readJSON(filepath.Join(data, hintFile), &h)
	}
	if err == nil {
		n.older, err = olderState(view, h)
	}
	if err == nil && h.Role == control.RoleVoter && !h.Recast {
		n.owned[control.ControlGroup], err = engine.StandingIn(view, control.ControlGroup)
	}
	if err = errors.Join(err, view.Close()); err != nil {
		n.err = err
		return n
	}
	if p, ok := st.Node(h.Node); ok {
		n.self = p.Name
	}
	for i := range st.Groups {
		n.groups[st.Groups[i].ID] = &st.Groups[i]
	}
	return n
}

// olderState says why the next start refuses the state store as too old.
func olderState(view kv.Reader, h hint) (string, error) {
	seen, err := startsSeen(view)
	delete(h.Peers, h.Node)
	return wentBack(seen, h.Starts, len(h.Peers)), err
}

// ownedStates are the groups that a start takes up with a log, and where their states stand.
func ownedStates(view kv.Reader) (map[uint64]replica.Standing, error) {
	at := map[uint64]replica.Standing{}
	err := view.Scan([]byte("o/"), []byte("o0"), func(k, v []byte) error {
		var group uint64
		var o owned
		if _, err := fmt.Sscanf(string(k), "o/%x", &group); err != nil {
			return fmt.Errorf("key %q: %w", k, err)
		}
		if err := json.Unmarshal(v, &o); err != nil {
			return fmt.Errorf("key %q: %w", k, err)
		}
		if o.Role != control.RoleVoter || o.Recast {
			return nil
		}
		st, err := engine.StandingIn(view, group)
		at[group] = st
		return err
	})
	return at, err
}

// againstStates compares what the log has with the states, as the start of each group does.
func (o *openedLog) againstStates(out *api.LogVerified) {
	if o.names.older != "" {
		out.Problems = append(out.Problems, api.LogProblem{Kind: "note", Groups: []string{}, What: "state/: " + o.names.older,
			Next: "it is refused: " + putBack})
	}
	for _, id := range slices.Sorted(maps.Keys(o.names.owned)) {
		st := o.names.owned[id]
		at := st.At.Index
		i := slices.IndexFunc(o.Groups, func(g logstore.Found) bool { return g.Group == id })
		switch {
		case i < 0 && at > 0 && o.Refused == nil:
			out.Sound = false
			out.Groups = append(out.Groups, api.LogGroup{ID: id, Group: o.names.name(id), First: 1,
				Damaged: fmt.Sprintf("the state is at %d, but its log is gone", at), Next: o.names.next(id)})
		case i >= 0 && o.Groups[i].Damaged == nil:
			o.inStep(out, i, st)
		}
	}
}

// inStep judges the log of one group by its state: whether it is reset to one that was installed, or not used.
func (o *openedLog) inStep(out *api.LogVerified, i int, st replica.Standing) {
	g := o.Groups[i]
	fits := g.Last.Index > st.At.Index || g.Last == logstore.Position{Index: st.At.Index, Term: st.At.Term}
	switch err := engine.OutOfStep(st, g.Start.Index, g.Last.Index, fits); {
	case err != nil:
		out.Sound = false
		out.Groups[i].Damaged, out.Groups[i].Next = err.Error(), o.names.next(g.Group)
	case !fits && st.At.Index > 0:
		out.Problems = append(out.Problems, api.LogProblem{Kind: "note", Groups: []string{o.names.label(g.Group)},
			What: fmt.Sprintf("the log ends at %d, the state is at %d: a snapshot was installed when the node went down", g.Last.Index, st.At.Index),
			Next: "the log is reset to the state"})
	}
}

func loadControl(view kv.Reader) (*control.State, error) {
	r, at, err := engine.MachineState(view, control.ControlGroup)
	if err != nil {
		return nil, err
	}
	return control.Load(r, at)
}

// name of a group, or "".
func (n *groupNames) name(id uint64) string {
	if g := n.groups[id]; g != nil {
		return g.Name
	}
	if id == control.ControlGroup {
		return control.KindControl
	}
	return ""
}

// label is how a group is called in a list.
func (n *groupNames) label(id uint64) string {
	if name := n.name(id); name != "" {
		return name
	}
	return strconv.FormatUint(id, 10)
}

// unnamed says why groups have no names, or nothing.
func (n *groupNames) unnamed() string {
	if n.err == nil {
		return ""
	}
	return "the state store cannot be read: " + n.err.Error()
}

// find takes a name or an id.
func (n *groupNames) find(op, word string) (uint64, error) {
	for id, g := range n.groups {
		if g.Name == word && !g.Deleted {
			return id, nil
		}
	}
	if word == control.KindControl {
		return control.ControlGroup, nil
	}
	if id, err := strconv.ParseUint(word, 10, 64); err == nil {
		return id, nil
	}
	e := &api.Error{Code: api.CodeNotFound, Op: op, Subject: word, Why: "this node knows no such group", Hint: "lockstep offline log verify lists them with their ids"}
	if n.err != nil {
		e.Why, e.Hint = n.unnamed(), "give the group's id; lockstep offline log verify lists them"
	}
	return 0, e
}

// Dump lists what lies in the segments: begin is shown all but them, then each is shown one. No more than one is in memory.
// An error of either ends it.
func (l OfflineLog) Dump(ctx context.Context, want api.LogFilter, begin func(api.LogDump) error, each func(*api.LogSegment) error) (err error) {
	const op = "offline log dump"
	o, err := l.open(ctx, op)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	var group uint64
	if want.Group != "" {
		if group, err = o.names.find(op, want.Group); err != nil {
			return err
		}
	}
	segments := slices.DeleteFunc(slices.Clone(o.Segments), func(s logstore.Segment) bool {
		return want.Segment != "" && want.Segment != s.Name && want.Segment != strconv.FormatUint(s.Number, 10)
	})
	if want.Segment != "" && len(segments) == 0 {
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: want.Segment, Why: "the log has no such segment", Hint: "lockstep offline log dump lists them"}
	}
	head := api.LogDump{Data: l.Data, Segments: []api.LogSegment{}, Unnamed: o.names.unnamed()}
	if o.Refused != nil {
		head.Refused = o.Refused.Error()
	}
	if err := begin(head); err != nil {
		return err
	}
	for _, s := range segments {
		seg, err := o.segment(s, group)
		if err == nil {
			err = each(&seg)
		}
		if err = errors.Join(ctx.Err(), err); err != nil {
			return err
		}
	}
	return nil
}

func (o *openedLog) segment(s logstore.Segment, group uint64) (api.LogSegment, error) {
	out := api.LogSegment{File: s.Name, Bytes: uint64(s.Size), Segment: s.Number, Part: s.Part, FirstBatch: s.First, LastBatch: s.Last,
		Live: uint64(s.Live), Frames: []api.LogFrame{}}
	frames, old, err := o.Frames(s.Name)
	if err != nil {
		return out, err
	}
	out.Old = old
	for _, f := range frames {
		torn := slices.ContainsFunc(o.Torn, func(p logstore.Problem) bool { return p.Segment == s.Name && p.Offset == f.Offset })
		frame := api.LogFrame{Offset: uint64(f.Offset), Bytes: uint64(f.Bytes), Kind: f.Kind, Batch: f.Batch, Synced: f.Synced, Torn: torn,
			Damage: f.Damage, Sections: []api.LogSection{}}
		for _, sec := range f.Sections {
			if group == 0 || sec.Group == group || sec.Damage != "" {
				frame.Sections = append(frame.Sections, o.section(sec))
			}
		}
		if group == 0 || len(frame.Sections) > 0 || frame.Damage != "" {
			out.Frames = append(out.Frames, frame)
		}
	}
	return out, nil
}

func (o *openedLog) section(s logstore.Section) api.LogSection {
	out := api.LogSection{Offset: uint64(s.Offset), Bytes: uint64(s.Bytes), Kind: s.Kind, ID: s.Group, Group: o.names.name(s.Group),
		Segments: s.Segments, Owner: s.Owner, Damage: s.Damage}
	if s.New {
		out.Flags = append(out.Flags, "new")
	}
	if s.WasDamaged {
		out.Flags = append(out.Flags, "damaged")
	}
	if s.Snapshot {
		out.Flags = append(out.Flags, "snapshot")
	}
	if s.At != nil {
		out.At = &api.LogPosition{Index: s.At.Index, Term: s.At.Term}
	}
	if s.Hard != nil {
		hard := api.LogHardState(*s.Hard)
		out.Hard = &hard
	}
	if s.Last.Index >= s.First.Index && s.First.Index > 0 {
		first, last := api.LogPosition(s.First), api.LogPosition(s.Last)
		out.First, out.Last = &first, &last
	}
	return out
}

// Verify judges the log as a start does.
func (l OfflineLog) Verify(ctx context.Context) (out api.LogVerified, err error) {
	o, err := l.open(ctx, "offline log verify")
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	out = api.LogVerified{Data: l.Data, Sound: o.Refused == nil, Segments: len(o.Segments), Groups: []api.LogGroup{}, Problems: []api.LogProblem{},
		Unnamed: o.names.unnamed()}
	for _, s := range o.Segments {
		out.Bytes += uint64(s.Size)
	}
	for _, g := range o.Groups {
		group := o.group(g)
		out.Sound = out.Sound && group.Damaged == ""
		out.Groups = append(out.Groups, group)
	}
	out.Problems = o.problems()
	if p, ok := o.foreign(l.Data); ok {
		out.Sound, out.Problems = false, append([]api.LogProblem{p}, out.Problems...)
	}
	o.againstStates(&out)
	return out, nil
}

// foreign finds a log that another node has written.
func (o *openedLog) foreign(data string) (api.LogProblem, bool) {
	var h hint
	if err := readJSON(filepath.Join(data, hintFile), &h); err != nil || h.Node == 0 || o.Owner == (logstore.Owner{}) {
		return api.LogProblem{}, false
	}
	cluster := access.ClusterID(o.Owner.Cluster).String()
	if o.Owner.Node == h.Node && cluster == h.Cluster {
		return api.LogProblem{}, false
	}
	return api.LogProblem{Kind: "damage", Groups: []string{},
		What: fmt.Sprintf("the log is of node %d of cluster %s, the data directory of node %d of cluster %s", o.Owner.Node, cluster, h.Node, h.Cluster),
		Next: "the start is refused: put back what was exchanged, or " + rejoin}, true
}

func (o *openedLog) group(g logstore.Found) api.LogGroup {
	out := api.LogGroup{ID: g.Group, Group: o.names.name(g.Group), First: g.Start.Index + 1, Last: api.LogPosition(g.Last),
		Hard: api.LogHardState(g.Hard), Voters: g.Voters, Bytes: g.Bytes}
	if g.Damaged != nil {
		out.Damaged, out.Next = g.Damaged.Error(), o.names.next(g.Group)
	}
	return out
}

func (o *openedLog) problems() []api.LogProblem {
	out := []api.LogProblem{}
	if o.Refused != nil {
		out = append(out, api.LogProblem{Kind: "damage", Groups: []string{}, What: o.Refused.Error(),
			Next: "the start is refused: this node's copy of no group can be trusted; move the data directory away and join again with --join TOKEN --replace"})
	}
	for _, p := range o.Problems {
		problem := api.LogProblem{Kind: "damage", File: p.Segment, Offset: uint64(p.Offset), Batch: p.Batch, Groups: []string{}, What: p.What}
		for _, g := range p.Groups {
			problem.Groups = append(problem.Groups, o.names.label(g))
		}
		switch {
		case len(p.Groups) > 0 && !slices.ContainsFunc(p.Groups, o.damaged):
			problem.Kind, problem.Next = "note", "nothing: what it concerned was replaced since"
		case len(p.Groups) == 1:
			problem.Next = o.names.next(p.Groups[0])
		case len(p.Groups) > 1:
			problem.Next = "each of these groups is not used as it is: see there"
		default:
			problem.Kind, problem.Next = "note", "nothing: no group's log is concerned"
		}
		out = append(out, problem)
	}
	for _, p := range o.Torn {
		out = append(out, api.LogProblem{Kind: "note", File: p.Segment, Offset: uint64(p.Offset), Batch: p.Batch, Groups: []string{}, What: p.What,
			Next: "it is dropped: nothing in it was acknowledged"})
	}
	return out
}

// damaged says that a start does not use the group's log.
func (o *openedLog) damaged(id uint64) bool {
	return slices.ContainsFunc(o.Groups, func(g logstore.Found) bool { return g.Group == id && g.Damaged != nil })
}

// recovery is the command with which a group goes on from what its members have.
func recovery(group string) string {
	return fmt.Sprintf("lockstep group recover %[1]s --unsafe --yes-lose-data %[1]s", group)
}

// offlineRecovery is the same for the control group.
func offlineRecovery(data, node string) string {
	return fmt.Sprintf("lockstep offline recover --data %s --yes-lose-data %s", data, node)
}

// next is what a start does about a group whose log is damaged.
func (n *groupNames) next(id uint64) string {
	g := n.groups[id]
	voters := 0
	if g != nil {
		voters = len(g.Voters())
	}
	switch {
	case id == control.ControlGroup && voters == 1:
		return "the start is refused: nobody else votes in the control group; it goes on from this node's state: " + offlineRecovery(n.data, n.self)
	case id == control.ControlGroup && voters == 2:
		return "the start is refused: the other voter alone decides nothing; stop it and run lockstep offline recover there, then join again with --join TOKEN --replace"
	case id == control.ControlGroup:
		return "this replica does not vote; another node gives it a new id, and it heals from the others. The start is refused while none answers"
	case g == nil && n.err == nil || g != nil && g.Deleted:
		return "nothing: the group is deleted"
	case voters == 1:
		return "the group does not run: nobody else votes in it; once the node runs, it goes on from the state: " + recovery(g.Name)
	}
	if voters == 2 {
		return "this replica does not vote, and the other one alone is no majority: " + recovery(g.Name) + " has it go on, and this one heals from it"
	}
	return "this replica does not vote; it asks for a new id and heals from the others"
}
