package server

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// collector reads the node's numbers when it is asked for them. Groups are labels, paths never.
type collector struct {
	n                                    *node
	applied, commit, term, leader        *prometheus.Desc
	behindFiles, behindBytes, lag        *prometheus.Desc
	feeds, states                        *prometheus.Desc
	pending, problems, peerUp, peerBytes *prometheus.Desc
	peerClock, peerGarbage, unwanted     *prometheus.Desc
	losses, doubtful, alarm, inSync      *prometheus.Desc
	quorumOnly                           *prometheus.Desc
	sent, received, reused, lingering    *prometheus.Desc
	diskFull, diskFree                   *prometheus.Desc
	info, ready, damaged, stopped        *prometheus.Desc
	files, bytes, conflicts              *prometheus.Desc
}

func newCollector(n *node) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lockstep_"+name, help, labels, nil)
	}
	return &collector{
		n:           n,
		applied:     desc("group_applied_index", "Last log index that this node's state covers.", "group"),
		commit:      desc("group_commit_index", "Last committed log index that this node knows.", "group"),
		term:        desc("group_term", "Raft term.", "group"),
		leader:      desc("group_leader", "1 if this node leads the group.", "group"),
		info:        desc("info", "Always 1; what this node runs, and the cluster level that it knows the cluster to be at (0: not known).", "version", "level"),
		ready:       desc("ready", "1 if /readyz answers 200."),
		damaged:     desc("group_damaged", "1 if this node's replica does not run, or runs on a log that is damaged.", "group"),
		stopped:     desc("dir_stopped", "1 if this node does not keep its directory: a guard has stopped it, or the directory cannot be used.", "group"),
		files:       desc("dir_files", "Regular files that the directory should hold.", "group"),
		bytes:       desc("dir_bytes", "Bytes of the files that the directory should hold.", "group"),
		conflicts:   desc("dir_conflicts", "Conflict copies that are left.", "group"),
		behindFiles: desc("dir_behind_files", "Paths that are not yet on disk as the manifest wants them.", "group"),
		behindBytes: desc("dir_behind_bytes", "Bytes of files that are not yet on disk.", "group"),
		lag:         desc("dir_lag_seconds", "Age of the oldest change that is not yet on disk.", "group"),
		pending:     desc("dir_pending_changes", "Local changes seen but not yet committed.", "group"),
		problems:    desc("dir_problems", "Paths that cannot be kept in step.", "group"),
		feeds:       desc("group_feeds", "Observers that are fed from here.", "group"),
		states:      desc("snapshot_sent_bytes_total", "Bytes of whole states that this node has sent."),
		peerUp:      desc("peer_up", "1 if the peer answers.", "peer"),
		peerClock:   desc("peer_clock_offset_seconds", "How far the peer's clock is ahead of this node's.", "peer"),
		peerGarbage: desc("peer_garbage_frames_total", "Frames of the peer that made no sense.", "peer"),
		unwanted:    desc("connections_unwanted_total", "Connections from outside that were refused, or turned away because there were too many.", "why"),
		losses:      desc("group_lost_writes_total", "Writes that this node answered ACCEPTED as the leader and that were lost, ever.", "group"),
		doubtful:    desc("group_quarantined", "1 if this node's state is not what the majority has.", "group"),
		alarm:       desc("group_states_differ", "1 if states differ and no majority agrees.", "group"),
		quorumOnly:  desc("dir_quorum_only_total", "Changes of this node under ack all that not every member of the in-sync set had in time.", "group"),
		inSync:      desc("group_in_sync_members", "Members of the recorded in-sync set.", "group"),
		diskFull:    desc("disk_full", "1 if this node takes no writes because the disk of its data directory is full."),
		diskFree:    desc("disk_free_bytes", "Bytes free on the file system of the data directory."),
		sent:        desc("dir_content_sent_bytes_total", "Bytes of contents sent to other members, beside the log.", "group"),
		received:    desc("dir_content_received_bytes_total", "Bytes of contents received from other members, beside the log.", "group"),
		reused:      desc("dir_content_reused_bytes_total", "Bytes of large contents that were found on this node instead of being received.", "group"),
		lingering:   desc("dir_lingering_bytes", "Bytes of large files that were removed or replaced lately and are kept for a while, in case that they turn up elsewhere.", "group"),
		peerBytes:   desc("peer_sent_bytes_total", "Bytes sent to the peer on raft connections.", "peer"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	for _, g := range c.n.ctl.state().Groups {
		if grp := c.n.groupHere(g.ID); grp != nil {
			st := grp.Core()
			applied := grp.Applied().Index
			gauge(c.applied, float64(applied), g.Name)
			gauge(c.commit, float64(committed(st.Commit, applied)), g.Name)
			gauge(c.term, float64(st.Term), g.Name)
			gauge(c.leader, boolean(st.Role == core.Leader), g.Name)
			gauge(c.inSync, float64(len(g.InSync.Replicas)), g.Name)
			gauge(c.doubtful, boolean(grp.Quarantine() != nil), g.Name)
			gauge(c.alarm, boolean(grp.Alarm() != ""), g.Name)
			if lost, err := grp.Losses(); err == nil {
				ch <- prometheus.MustNewConstMetric(c.losses, prometheus.CounterValue, float64(lost), g.Name)
			}
			gauge(c.feeds, float64(grp.Catchup().Feeds), g.Name)
		}
		h, err := c.n.holding(g.ID)
		if err != nil {
			continue
		}
		if h.obs != nil {
			gauge(c.applied, float64(h.obs.Applied().Index), g.Name)
			gauge(c.commit, float64(h.obs.SourceApplied()), g.Name)
			gauge(c.feeds, float64(h.obs.Catchup().Feeds), g.Name)
		}
		ch <- prometheus.MustNewConstMetric(c.quorumOnly, prometheus.CounterValue, float64(h.quorumOnly.Load()), g.Name)
		if a, err := h.theAgent(); err == nil {
			moved := a.Traffic()
			for d, v := range map[*prometheus.Desc]int64{c.sent: moved.Sent, c.received: moved.Received, c.reused: moved.Reused} {
				ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), g.Name)
			}
		}
	}
	c.accounts(gauge)
	version, err := c.n.Version(context.Background())
	if err == nil {
		ch <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, version.Version, fmt.Sprint(version.Cluster))
	}
	ready := true
	for _, check := range c.n.Ready(context.Background()) {
		ready = ready && check.OK
	}
	ch <- prometheus.MustNewConstMetric(c.ready, prometheus.GaugeValue, boolean(ready))
	ch <- prometheus.MustNewConstMetric(c.diskFull, prometheus.GaugeValue, boolean(c.n.disk.Full()))
	ch <- prometheus.MustNewConstMetric(c.diskFree, prometheus.GaugeValue, float64(c.n.disk.free.Load()))
	ch <- prometheus.MustNewConstMetric(c.states, prometheus.CounterValue, float64(c.n.eng.SnapshotBytes()))
	members := c.n.ctl.state()
	for _, p := range c.n.net.Peers() {
		if m, ok := members.Node(p.Node); ok && m.Removed { // its name may be another's by now
			continue
		}
		name := c.n.nameOf(p.Node)
		gauge(c.peerUp, boolean(p.Up), name)
		gauge(c.peerClock, p.ClockOffset.Seconds(), name)
		ch <- prometheus.MustNewConstMetric(c.peerGarbage, prometheus.CounterValue, float64(p.Garbage), name)
		ch <- prometheus.MustNewConstMetric(c.peerBytes, prometheus.CounterValue, float64(p.BytesOut), name)
	}
	u := c.n.net.Unwanted()
	ch <- prometheus.MustNewConstMetric(c.unwanted, prometheus.CounterValue, float64(u.Refused), "refused")
	ch <- prometheus.MustNewConstMetric(c.unwanted, prometheus.CounterValue, float64(u.Crowded), "crowded")
}

// accounts are what this node reports of its parts of the groups, as `status` shows it. Of a directory that cannot be
// used there is nothing but that.
func (c *collector) accounts(gauge func(d *prometheus.Desc, v float64, label string)) {
	st := c.n.ctl.state()
	for i := range st.Groups {
		g := &st.Groups[i]
		if _, mine := g.Member(c.n.self); !mine || g.Deleted {
			continue
		}
		r, err := c.n.reportHere(context.Background(), groupRequest{Group: g.ID})
		if err != nil { // it does not run yet: the node is not ready
			continue
		}
		gauge(c.damaged, boolean(!r.takesPart() || r.Damage != ""), g.Name)
		if g.Kind != control.KindFiles {
			continue
		}
		d := r.Dir
		gauge(c.stopped, boolean(d == nil || d.Mode == modeStopped), g.Name)
		if d == nil || d.Watcher == "" {
			continue
		}
		gauge(c.files, float64(r.Files), g.Name)
		gauge(c.bytes, float64(r.Bytes), g.Name)
		gauge(c.behindFiles, float64(d.BehindFiles), g.Name)
		gauge(c.behindBytes, float64(d.BehindBytes), g.Name)
		gauge(c.lag, d.LagSeconds, g.Name)
		gauge(c.pending, float64(d.Pending), g.Name)
		gauge(c.problems, float64(len(d.Problems)), g.Name)
		gauge(c.conflicts, float64(d.Conflicts), g.Name)
		gauge(c.lingering, float64(d.LingeringBytes), g.Name)
	}
}

// committed is the last index known to be committed. What a status says of it is published with the ticks only, of which a
// quiet group has few; what is applied is committed in any case.
func committed(published, applied uint64) uint64 { return max(published, applied) }

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
