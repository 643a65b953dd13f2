package api

import "time"

// MediaBackup is the media type of a backup, and of what is sent to be restored.
const MediaBackup = "application/x-lockstep-backup"

// BackupCreate asks for a backup; the answer is the file itself (docs/en/formats/backup.md).
type BackupCreate struct {
	Groups []string `json:"groups,omitempty"` // empty: all
}

// Restore asks that a group of a backup becomes a group of this cluster. It is the first line of a request's body;
// what the backup holds of the group follows.
type Restore struct {
	Group string            `json:"group"`           // in the backup
	As    string            `json:"as"`              // here
	Paths map[string]string `json:"paths,omitempty"` // node → directory; none if As is a group that exists
	// OverLiving: As may be a group that exists, whose state is then given up, and directories may hold files.
	OverLiving bool `json:"over_living,omitempty"`
	DryRun     bool `json:"dry_run,omitempty"` // nothing follows
	// What the backup says of the group.
	History  string `json:"history"`         // 32 hex digits
	Level    uint64 `json:"level,omitempty"` // cluster level of the state; 0: the first
	Term     uint64 `json:"term"`
	Index    uint64 `json:"index"`
	Files    uint64 `json:"files"`
	Bytes    uint64 `json:"bytes"`
	Ack      string `json:"ack,omitempty"`
	Conflict string `json:"conflict,omitempty"`
	Mode     string `json:"mode,omitempty"`
	Topology string `json:"topology,omitempty"`
}

// Restored is what a restore did, or would do.
type Restored struct {
	Group    string            `json:"group"`
	Node     string            `json:"node"`              // that begins the new history
	History  string            `json:"history,omitempty"` // the new one; empty in a dry run
	Before   string            `json:"before"`            // the backup's
	Fork     uint64            `json:"fork"`              // the position of the backup
	Files    uint64            `json:"files"`
	Bytes    uint64            `json:"bytes"`
	Paths    map[string]string `json:"paths"`
	Replaced bool              `json:"replaced"` // a group that existed
	// GivenUp is the last position of the state that was replaced: nothing was acknowledged beyond it, unless by Unasked,
	// voters that were a majority by themselves, or may have been, and did not answer.
	GivenUp  uint64   `json:"given_up,omitempty"`
	Unasked  []string `json:"unasked,omitempty"`
	DryRun   bool     `json:"dry_run"`
	Warnings []string `json:"warnings"`
}

// BackupInfo is what a backup holds, as the commands that read one show it.
type BackupInfo struct {
	File         string        `json:"file"`
	Level        int           `json:"level"`
	Cluster      string        `json:"cluster"`
	Node         string        `json:"node"`
	Version      string        `json:"version"`
	Created      time.Time     `json:"created"`
	Groups       []BackupGroup `json:"groups"`
	Contents     uint64        `json:"contents"`
	ContentBytes uint64        `json:"content_bytes"`
	Size         uint64        `json:"size"` // of the file
}

// BackupGroup is a group in a backup.
type BackupGroup struct {
	Name    string            `json:"name"`
	History string            `json:"history"`
	Term    uint64            `json:"term"`
	Index   uint64            `json:"index"`
	Files   uint64            `json:"files"`
	Bytes   uint64            `json:"bytes"`
	Digest  string            `json:"digest"` // of what the directory held, as in dir status
	Paths   map[string]string `json:"paths"`  // node → directory
	Level   uint64            `json:"level"`  // cluster level of its state
}
