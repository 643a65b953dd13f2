package sim

// mutant is a bug planted in production code: old, which must be there exactly once, becomes new.
type mutant struct {
	name  string
	file  string // below internal/
	old   string
	new   string
	why   string // what it breaks
	whole bool   // to be seen by whole engines (TestBubble): it is in the engine's runners
	quick bool   // seen within the first seeds: planted in every test run
}

var mutants = []mutant{
	{
		name: "a full disk acknowledges on", file: "engine/core/room.go", quick: true,
		old: "		return len(entries) > 0 && g.full() && !g.cfg.Room.Spend(entryBytes(entries), !slices.ContainsFunc(entries, hasPayload))\n",
		new: "		return len(entries) < 0\n",
		why: "the reserve is used up, and a vote finds no room",
	},
	{
		name: "a full leader takes proposals", file: "engine/core/propose.go",
		old: "	if code, ok := g.roomFor(); !ok {\n",
		new: "	if code, ok := g.roomFor(); !ok && code == Full {\n",
		why: "the reserve is used up, and a vote finds no room",
	},
	{
		name: "accepts before the sync", file: "engine/core/group.go", quick: true,
		old: "		a.term = g.term\n",
		new: "		a.term = g.term\n		g.accept(g.last)\n",
		why: "an ACCEPTED write may be on no disk at all",
	},
	{
		name: "follower acknowledges before the sync", file: "engine/core/group.go",
		old: "	if g.role == Leader {\n		a.term = g.term\n	}\n	return a\n",
		new: "	if g.role == Leader {\n		a.term = g.term\n	}\n" +
			"	own := a.done[:0:0]\n	for _, r := range a.done {\n		if r.GetTo() == g.cfg.Replica {\n" +
			"			own = append(own, r)\n		} else {\n			g.sends = append(g.sends, r)\n		}\n	}\n" +
			"	a.done = own\n	return a\n",
		why: "a committed entry may be on fewer disks than a quorum; a vote may be forgotten",
	},
	{
		name: "vote forgotten", file: "engine/core/group.go",
		old: "		a.HardState = nil\n	}\n",
		new: "		a.HardState = nil\n	} else {\n" +
			"		a.HardState = &raftpb.HardState{Term: rd.HardState.Term, Commit: rd.HardState.Commit}\n	}\n",
		why: "after a crash a replica votes twice in one term",
	},
	{
		name: "hard state not written", file: "engine/core/group.go",
		old: "HardState: rd.HardState, done",
		new: "HardState: nil, done",
		why: "after a crash a replica goes back to an older term",
	},
	{
		name: "applies before the commit", file: "engine/core/group.go",
		old: "	clear(rd.Messages[len(keep):])\n",
		new: "	clear(rd.Messages[len(keep):])\n" +
			"	if n := len(rd.Entries); e.Apply == nil && n > 0 && rd.Entries[0].GetIndex() == g.applying+1 {\n" +
			"		g.applying = rd.Entries[n-1].GetIndex()\n		e.Apply = &Apply{Entries: rd.Entries}\n	}\n",
		why: "states hold entries that another leader replaces",
	},
	{
		name: "all means a quorum", file: "engine/core/insync.go",
		old: "			index = min(index, pr.Match)\n",
		new: "			index = min(index, max(pr.Match, g.applied))\n",
		why: "COMMITTED_ALL is said of a write that a member does not have",
	},
	{
		name: "in-sync set grows by who lacks something", file: "engine/core/insync.go",
		old: "		if !slices.Contains(g.inSync.required, r) && g.match(r) < g.inSync.upTo {\n",
		new: "		if !slices.Contains(g.inSync.required, r) && g.match(r) > 1<<60 {\n",
		why: "a member of the recorded set lacks a write that was answered COMMITTED_ALL",
	},
	{
		name: "proposed members are not counted", file: "engine/core/insync.go",
		old: "		required = append(required, r)\n",
		new: "		_ = r\n",
		why: "COMMITTED_ALL is said of a write that a member lacks which was recorded meanwhile",
	},
	{
		name: "read before the state is there", file: "engine/core/read.go",
		old: "r.granted[n].index <= g.applied",
		new: "r.granted[n].index > 0",
		why: "a linearizable read misses acknowledged writes",
	},
	{
		name: "reads by lease", file: "engine/core/group.go",
		old: "raft.ReadOnlySafe",
		new: "raft.ReadOnlyLeaseBased",
		why: "a leader that was paused answers reads after its successor has taken writes",
	},
	{
		name: "leader reads before its term has begun", file: "engine/core/read.go",
		old: "g.leader == 0, g.role == Leader && !g.termBegun:",
		new: "g.leader == 0:",
		why: "a single voter answers with the commit index that it found on its disk",
	},
	{
		name: "state taken for committed log", file: "engine/core/storage.go",
		old: "	return term == at.Term, nil\n",
		new: "	return term > 0, nil\n",
		why: "after a crash between state and log reset, entries that were never committed are passed on",
	},
	{
		name: "sessions missing from the snapshot", file: "engine/replica/snapshot.go",
		old: "	out.records(view, tagSession, st.slot.sessions())\n",
		new: "",
		why: "a retry after a restore is executed again",
	},
	{
		name: "duplicates executed again", file: "engine/replica/apply.go", quick: true,
		old: "if old, ok := s.find(p.Seq); ok {",
		new: "if old, ok := s.find(p.Seq); ok && len(old) > 1<<30 {",
		why: "a retry is executed twice",
	},
	{
		name: "position written ahead of the state", file: "engine/replica/apply.go",
		old: "	if err := a.next.write(b); err != nil {\n",
		new: "	ahead := r.store.Batch()\n	if err := errors.Join(a.next.write(ahead), ahead.Commit()); err != nil {\n",
		why: "after a crash committed entries are skipped",
	},
	{
		name: "position not written", file: "engine/replica/apply.go",
		old: "	if err := a.next.write(b); err != nil {\n",
		new: "	if err := error(nil); err != nil {\n",
		why: "after a crash entries are executed again",
	},
	{
		name: "snapshot not synced", file: "engine/replica/snapshot.go",
		old: "	if err := r.store.Sync(); err != nil {\n",
		new: "	if err := error(nil); err != nil {\n",
		why: "the log is reset to a state that a crash takes away",
	},
	{
		name: "snapshot without configuration", file: "engine/replica/snapshot.go",
		old: "		st.conf = cs\n",
		new: "		_ = cs\n",
		why: "a restored replica does not know the members",
	},
	{
		name: "configuration not recorded", file: "engine/replica/apply.go",
		old: "		a.next.conf = cs\n",
		new: "		_ = cs\n",
		why: "after a restart a replica counts by an old configuration",
	},
	{
		name: "time goes back", file: "engine/replica/apply.go",
		old: "max(a.next.time, batch.Time)",
		new: "batch.Time",
		why: "a new leader's slower clock takes the log's time back",
	},
	{
		name: "conflict copy dropped", file: "files/manifest/conflict.go", quick: true,
		old: "	if err := a.put(name, &record{}, &r, Changed{Inline: c.Inline}); err != nil {\n",
		new: "	if _, err := a.get(string(r.Target)); err != nil {\n",
		why: "a user's bytes are lost",
	},
	{
		name: "stale change accepted", file: "files/manifest/apply.go",
		old: "	return c.Base == cur.Version\n",
		new: "	return c.Base <= cur.Version\n",
		why: "a concurrent version is overwritten unseen",
	},
	{
		name: "damaged snapshot believed", file: "engine/replica/snapshot.go",
		old: "	if !bytes.Equal(got, want) {\n",
		new: "	if len(got) != len(want) && !bytes.Equal(got, want) {\n",
		why: "a state that was altered on its way is put in force",
	},
	{
		name: "old sessions stay after a difference was fetched", file: "engine/replica/stage.go",
		old: "	if err := sessions.DeleteRange(nil, nil); err != nil {\n",
		new: "	if err := error(nil); err != nil {\n",
		why: "a replica that was brought up to date remembers sessions that the others have forgotten",
	},
	{
		name: "evicted session comes back", file: "engine/replica/sessions.go",
		old: "		if err := tx.Delete(append(key[:n], client[:]...)); err != nil {\n",
		new: "		if err := error(nil); client[0] > 0 || err != nil {\n",
		why: "after a restart a replica evicts others than its peers do",
	},
	{
		name: "sessions in the order of their names", file: "engine/replica/sessions.go",
		old: "		return cmp.Or(cmp.Compare(a.used.index, b.used.index), cmp.Compare(a.used.ordinal, b.used.ordinal))\n",
		new: "		return bytes.Compare(a.client[:], b.client[:])\n",
		why: "after a restart a replica evicts others than its peers do",
	},
	{
		name: "answers to an earlier run's reads believed", file: "engine/core/read.go",
		old: "	if len(ctx) != 24 || binary.BigEndian.Uint64(ctx[8:]) != nonce {\n",
		new: "	if len(ctx) != 24 || nonce == 0 {\n",
		why: "a read is answered by a round that began before it was asked",
	},
	{
		name: "messages that no peer may send are taken", file: "engine/core/group.go",
		old: ", t == raftpb.MsgForgetLeader, t == raftpb.MsgTransferLeader:",
		new: ":",
		why: "a peer can make a replica forget its leader, or a leader hand over",
	},
	{
		name: "an entry left out of DIFF", file: "engine/catchup/plan.go",
		old: "	return Plan{Mode: Diff, From: at + 1, To: s.Commit, Bytes: bytes,",
		new: "	return Plan{Mode: Diff, From: at + 2, To: s.Commit, Bytes: bytes,",
		why: "an observer lacks an entry and starts over for ever",
	},
	{
		name: "DIFF from a log that was cut", file: "engine/catchup/plan.go",
		old: "	if l.Index+1 < s.First {\n",
		new: "	if l.Index+3 < s.First {\n",
		why: "what the log no longer holds is promised, or taken for a divergence",
	},
	{
		name: "a stale source is taken for a diverged member", file: "engine/catchup/plan.go",
		old: "	if l.Index > s.Commit {\n",
		new: "	if l.Index > s.Commit+100 {\n",
		why: "a member that is ahead of its source is thrown away",
	},
	{
		name: "a loop is not noticed", file: "engine/catchup/route.go",
		old: "	case slices.Contains(path, node):\n",
		new: "	case slices.Contains(path, node) && len(path) > MaxHops:\n",
		why: "observers feed one another in a circle, and nobody feeds them",
	},
	{
		name: "a path may be of any length", file: "engine/catchup/route.go",
		old: "	case len(path) > MaxHops:\n",
		new: "	case len(path) > 2*MaxHops:\n",
		why: "observers are farther from the voters than they may be",
	},
	{
		name: "who is fed feeds in turn", file: "engine/catchup/plan.go",
		old: "	case contains(s.Path, l.Node):\n",
		new: "	case contains(s.Path, l.Node) && len(s.Path) > MaxHops:\n",
		why: "an observer is offered what it has sent itself",
	},
	{
		name: "voters are not asked when all others fail", file: "engine/catchup/route.go",
		old: "	for _, n := range slices.Concat(assigned, voters) {\n",
		new: "	if len(assigned) > 0 {\n		voters = nil\n	}\n	for _, n := range slices.Concat(assigned, voters) {\n",
		why: "an observer whose sources are gone is never fed again",
	},
	{
		name: "source offers what is not committed", file: "engine/core/storage.go",
		old: "	if err != nil || fits {\n		return at.Index, err\n",
		new: "	if err != nil || fits {\n		if last, bad := log.LastIndex(); bad == nil {\n			return last, err\n		}\n		return at.Index, err\n",
		why: "observers hold entries that another leader replaces",
	},
	{
		name: "relay remembers across a state that it took", file: "engine/tail.go",
		old: "	t.base, t.list, t.sizes, t.gone = at, nil, nil, 0\n",
		new: "	_ = at\n",
		why: "observers that a relay feeds are sent what does not follow",
	},
	{
		name: "relay forgets where its memory begins", file: "engine/tail.go",
		old: "	t.base = core.Position{Term: last.GetTerm(), Index: last.GetIndex()}\n",
		new: "	t.base.Term = last.GetTerm()\n",
		why: "entries are sent under other indexes than their own",
	},
	{
		name: "relay sends one entry less", file: "engine/tail.go",
		old: "	i := int(from - t.base.Index - 1)\n",
		new: "	i := min(int(from-t.base.Index), len(t.list)-1)\n",
		why: "observers that a relay feeds lack an entry",
	},
	{
		name: "relay of a wrong term", file: "engine/tail.go",
		old: "	return t.list[i-t.base.Index-1].GetTerm(), true\n",
		new: "	return t.list[0].GetTerm(), true\n",
		why: "an observer is told that its state has diverged",
	},
	{
		name: "terms are not compared", file: "engine/catchup/plan.go",
		old: "	if term, ok := s.Term(l.Index); !ok || term != l.Term {\n",
		new: "	if term, ok := s.Term(l.Index); !ok || term == 0 {\n",
		why: "a state that the group never had is fed as if nothing were",
	},
	{
		name: "beyond a fork is before it", file: "engine/catchup/plan.go",
		old: "	if l.Index <= k {\n",
		new: "	if l.Index <= k+1000 {\n",
		why: "an observer goes on with what the new history may not have",
	},
	{
		name: "deleted entries stay after a difference was fetched", file: "files/manifest/fetch.go",
		old: "		if err := l.del(k); err != nil {\n			return err\n		}\n	}\n	for _, d := range goneDirs",
		new: "		if err := error(nil); len(k) == 0 || err != nil {\n			return err\n		}\n	}\n	for _, d := range goneDirs",
		why: "a replica that was brought up to date holds files that are deleted",
	},
	{
		name: "accepted writes forgotten with the leadership", file: "engine/core/fate.go",
		old: "	if entry.Index > covered.Index {\n		if covered.Term > entry.Term {\n",
		new: "	if entry.Index > covered.Index {\n		if covered.Term >= entry.Term {\n",
		why: "a write is said to be lost and is committed afterwards",
	},
	{
		name: "accepted without knowing that it will be executed", file: "engine/core/certain.go", quick: true,
		old: "	if p.Ack == AckLocal && !g.executes(p) {\n",
		new: "	if p.Ack == AckLocal && p.Seq == 0 {\n",
		why: "an ACCEPTED write of a session that was forgotten is committed and executed nowhere",
	},
	{
		name: "accepted whatever is on its way", file: "engine/core/certain.go",
		old: "Sessions: len(g.aloft), Floor",
		new: "Sessions: min(1, len(g.aloft)), Floor",
		why: "new sessions that are on their way evict the session of an ACCEPTED write",
	},
	{
		name: "terms missing from the snapshot", file: "engine/replica/snapshot.go",
		old: "	out.field(st.terms.Append(nil))\n",
		new: "	out.field(nil)\n",
		why: "what became of accepted writes is no longer known",
	},
	{
		name: "log believed without a sync", file: "engine/logstore/segment_open.go",
		old: "		if err := seg.file.Sync(); err != nil {\n",
		new: "		if err := error(nil); err != nil {\n",
		why: "what a killed process left in memory is built on, and gone with the power",
	},
	{
		name: "segment used again too early", file: "engine/logstore/segments.go",
		old: "	s.pending.released = append(s.pending.released, release{r.seg, 1, int64(r.size)})\n",
		new: "	r.seg.runs--\n	r.seg.bytes -= int64(r.size)\n",
		why: "entries are overwritten before it is durable that nobody needs them",
	},
	{
		name: "hard state missing from a head", file: "engine/logstore/segment_write.go",
		old: "		st := s.groups[id].state()\n",
		new: "		st := s.groups[id].state()\n		st.hard = hardState{}\n",
		why: "votes are forgotten when the segment that holds them is used again",
	},
	{
		name: "checksum of a section ignored", file: "engine/logstore/section.go",
		old: "	if le.Uint32(b[at:]) != crcOf(b[at+4:at+s.size]) {\n",
		new: "	if le.Uint32(b[at:]) != crcOf(b[at+4:at+s.size]) && s.size == 0 {\n",
		why: "a bit that flipped is handed out as an entry",
	},
	{
		name: "old damage counts against a new log", file: "engine/logstore/recover.go",
		old: "known := abouts[n]; n > removed[g] && (!known",
		new: "known := abouts[n]; n > 0 && (!known",
		why: "a replica that has begun again after damage is taken for damaged once more",
	},
	{
		name: "any replica is spared", file: "engine/core/status.go",
		old: "	return s.Role == Leader && replica != s.Replica && s.holdWithout(replica, s.Voters) && s.holdWithout(replica, s.Outgoing)\n",
		new: "	return s.Role == Leader && replica != s.Replica\n",
		why: "a damaged replica drops what no quorum of the others has",
	},
	{
		name: "spared by those who lag", file: "engine/core/status.go",
		old: "p.RecentActive && p.Match >= all && p.Replica != replica",
		new: "p.RecentActive && all > 0 && p.Replica != replica",
		why: "a damaged replica drops what no quorum of the others has yet",
	},
	{
		name: "a log found damaged is handed out again", file: "engine/logstore/segments.go",
		old: "		s.bad[group] = why\n",
		new: "		_ = why\n",
		why: "a replica goes on with a log that was found damaged while it ran",
	},
	{
		name: "damage of what is not applied counts as cut", file: "engine/damage.go",
		old: "	if lo > s.Rep.Applied().Index {\n		return nil, err\n	}\n	return nil, raft.ErrCompacted\n",
		new: "	return nil, raft.ErrCompacted\n",
		why: "a replica takes what it has to apply for cut off, and goes down with what is wrong",
	},
	{
		name: "a damaged replica keeps its id", file: "control/renew.go",
		old: "	m.Replica = g.NextReplica\n",
		new: "",
		why: "it never comes back",
	},
	{
		name: "who begins again keeps its position", file: "engine/replica/recast.go",
		old: "		st.at = core.Position{}\n",
		new: "		_ = core.Position{}\n",
		why: "the new replica has a state and no log, which is damage again",
	},
	{
		name: "a full leader stays", file: "engine/core/room.go", whole: true,
		old: "	if g.plan.To != 0 && s.Transferee == 0 {\n",
		new: "	if g.plan.To != 0 && s.Transferee != 0 {\n",
		why: "nothing is written although a quorum has room",
	},
	{
		name: "refusing goes on with room", file: "engine/core/room.go", whole: true,
		old: "		g.plan, g.unheard = RoomPlan{}, nil\n		return\n",
		new: "		return\n",
		why: "nothing is written any more until leadership moves",
	},
	{
		name: "no bound of what a full disk takes", file: "engine/room.go", whole: true,
		old: "		if spent+n > limit {\n",
		new: "		if spent+n > limit<<10 {\n",
		why: "the reserve is used up, and a vote finds no room",
	},
	{
		name: "feature used before the level was raised", file: "control/level.go", quick: true,
		old: "	return level, nil\n",
		new: "	return max(level, l.Max), nil\n",
		why: "a node that was upgraded writes what those that were not cannot execute",
	},
	{
		name: "level taken from the program", file: "engine/replica/apply.go",
		old: "Level: a.next.level, Payload",
		new: "Level: a.r.known(), Payload",
		why: "replicas execute one entry in two ways",
	},
	{
		name: "level raised though a node cannot follow", file: "control/level.go",
		old: "		if n.Removed || n.Levels.Has(c.To) {\n",
		new: "		if n.Removed || n.Levels.Known().Min <= c.To {\n",
		why: "a node is left behind by its own cluster",
	},
	{
		name: "older program taken in after the level was raised", file: "control/execute.go",
		old: "	if level := x.s.Level(); !c.Levels.Has(level) {\n		return Result{Error: Unfit(\"serve\", n.Name, c.Levels, level)}, nil\n	}\n",
		new: "",
		why: "a node takes part that cannot execute what comes",
	},
	{
		name: "older leader lowers the level", file: "engine/replica/apply.go",
		old: "max(a.next.level, batch.Level)",
		new: "batch.Level",
		why: "a command that was executed is refused to the next who asks",
	},
	{
		name: "entry of an unknown level executed", file: "engine/replica/apply.go",
		old: "	if !a.r.knows(level) {\n",
		new: "	if a.r == nil {\n",
		why: "an older program executes what it does not know",
	},
	{
		name: "state of an unknown level opened", file: "engine/replica/replica.go",
		old: "	if !r.knows(level) {\n",
		new: "	if level == 0 {\n",
		why: "an older program goes on from what it does not know",
	},
	{
		name: "level missing from the snapshot", file: "engine/replica/snapshot.go",
		old: "	out.write(binary.AppendUvarint([]byte(magic), st.level))\n",
		new: "	out.write(binary.AppendUvarint([]byte(magic), core.FirstLevel))\n",
		why: "a replica that was brought up to date executes at a level of the past",
	},
	{
		name: "level not written", file: "engine/replica/apply.go",
		old: "	if a.next.level != r.state.level {\n",
		new: "	if r == nil {\n",
		why: "after a restart a replica executes at a level of the past",
	},
	{
		name: "command used whatever the level", file: "sim/registers.go",
		old: "	if s.knows < programNext || cmd.Level < programNext {\n",
		new: "	if s.knows < programNext {\n",
		why: "a machine's new command is executed by some replicas and refused by others",
	},
	{
		name: "writer tells of a write before it was done", file: "engine/writer.go", whole: true,
		old: "	if len(writes) > 0 {\n		if err := w.store.Write(writes); err != nil {\n			return err\n		}\n	}\n" +
			"	for _, j := range jobs {\n		j.done()\n	}\n	return nil\n",
		new: "	for _, j := range jobs {\n		j.done()\n	}\n" +
			"	if len(writes) > 0 {\n		return w.store.Write(writes)\n	}\n	return nil\n",
		why: "what was acknowledged is on no disk when the process dies",
	},
	{
		name: "observer reads without waiting", file: "engine/observer.go", whole: true,
		old: "				return o.answerRead(ctx, index)\n",
		new: "				return index, nil\n",
		why: "a linearizable read at an observer misses acknowledged writes",
	},
	{
		name: "a retry is another write", file: "engine/session.go", whole: true,
		old: "p.Client, p.Seq, p.Floor = s.client, seq, s.answered()",
		new: "p.Client, p.Seq, p.Floor = s.client, seq+uint64(try)<<32, s.answered()",
		why: "a write whose answer was lost is executed twice",
	},
	{
		name: "verdict without consequence", file: "engine/quarantine.go", whole: true,
		old: "	if !odd || g.rep.Quarantine() != nil {\n",
		new: "	if odd = false; !odd || g.rep.Quarantine() != nil {\n",
		why: "a replica whose state was altered goes on with it",
	},
	{
		name: "a feed that leaves entries out", file: "engine/source.go", whole: true,
		old: "	entries, err := s.log.Entries(c.next, applied, feedFrame)\n",
		new: "	c.next = max(c.next, applied-min(applied, 1))\n	entries, err := s.log.Entries(c.next, applied, feedFrame)\n",
		why: "an observer is sent what does not follow, and begins again for ever",
	},
	{
		name: "messages of another history are taken", file: "engine/fork.go", whole: true,
		old: "	return tag == own || tag == 0 || own == 0\n",
		new: "	return tag == own || tag != own || own == 0\n",
		why: "members of a history that was given up vote and acknowledge in the new one",
	},
	{
		name: "state from beyond a fork is kept", file: "engine/fork.go", whole: true,
		old: "st.At.Index > 0 && st.At.Index <= line.Fork.Index && line.Seed != 0",
		new: "st.At.Index > 0 && line.Seed != 0",
		why: "a replica goes on with what the new history has not",
	},
	{
		name: "log not cut at a fork", file: "engine/fork.go", whole: true,
		old: "	if err := e.writer.do(func(s logstore.Store) error { return cutLog(s, group, st.At, conf) }); err != nil {\n",
		new: "	if err := error(nil); err != nil {\n",
		why: "entries of a history that was given up are taken for committed",
	},
	{
		name: "relay offers what was before a state that it took", file: "engine/attach.go", whole: true,
		old: "			o.tail.Reset(o.rep.Applied())\n",
		new: "",
		why: "observers that a relay feeds are sent what does not follow",
	},
}
