// Package manifest is the replicated machine of a files group: what every bound directory should hold.
//
// It decides in log order which proposed changes stand (Apply), keeps the result as one key per directory
// entry plus digests per directory, counters and a conflict log, tells the node what changed (Config.Changed),
// and can make one replica's state equal to another's by comparing directory digests (ServeDiff, FetchDiff).
//
// It is not the disk: applying a command changes no file, reads none and holds no content. Content that rides
// in a command passes through to the Changed event and is forgotten.
//
// # Rules
//
// A change whose Base is the path's current version is accepted. One that would alter nothing is Same. For
// the rest, no content that was ever accepted or proposed against a stale base disappears: it stays at its
// path or is kept under a conflict name, in the same entry.
//
//   - Content against a stale base is a conflict. Policy keep-both and first: the version first in log order
//     keeps the name. newest: the later mtime keeps it (a tie: the first). prefer:NODE: NODE's version keeps
//     it; if neither or both are NODE's, the first. The other one becomes path.conflict-NODE-TIME.
//   - A second command of one entry never displaces what an earlier one put at a path: versions are entry
//     indexes, so its author could not tell afterwards. It loses, whatever the policy.
//   - The same content with other metadata: the last change in log order wins (within one entry: the first).
//   - A metadata change that did not send the content along (Change.SameContent) is Superseded if the content
//     is not what stands at the path.
//   - Directory metadata: the last change wins (I5).
//   - The root's is that of the directory which was bound first: with Base 0 against one that was claimed a change is
//     Superseded, whatever the policy. A change that says of itself that it is one of the time alone (SameContent) sets
//     nothing else, and if there is no root yet, makes one that is not claimed.
//   - An edit beats a delete that it did not know of; a delete with a stale base is Superseded.
//   - A directory is deleted if it is empty, whatever Base says: it holds no bytes.
//   - A missing parent (another node removed it) is made again, 0755 and owned like the entry, so that bytes
//     survive. A directory's own metadata change does not bring it back: Superseded.
//   - A parent that is no directory any more: the entry goes to PARENT.conflict-NODE-TIME/rest.
//   - A file takes a directory's place only if the directory is empty and Base is current; a directory takes a
//     file's place if Base is current. Otherwise the newcomer gets a conflict name.
//
// # State
//
// Keys, with every '/' of a path written as 0x00 (which no name contains):
//
//	n DIR 00 00 NAME   an entry; the children of a directory are contiguous and so is each subtree,
//	                   parents come before their children
//	r                  the root directory's own metadata
//	d DIR              digest memo; rebuilt if absent, never part of a snapshot
//	s                  counters
//	p                  conflict policy
//	a ID, b NAME       authors: a small number for each node name, and back
//	c SEQ              conflict log, newest 10,000
//
// The package starts no goroutine.
package manifest
