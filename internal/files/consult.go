package files

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// consult asks the manifest about findings: those that are no edits, since what was never placed here is in the
// manifest with these bytes, are recorded as they are, and the rest is returned. One look-up serves the whole batch,
// because on the way in of a large tree every path is asked for.
func (a *Agent) consult(found []finding) ([]finding, error) {
	paths := make([]string, len(found))
	for i := range found {
		paths[i] = found[i].change.Path
	}
	stands, err := a.standings(paths)
	if err != nil {
		return nil, fmt.Errorf("compare what was found with the manifest: %w", err)
	}
	kept := found[:0]
	var adopted []adoption
	for i := range found {
		f, stands := &found[i], stands[found[i].change.Path]
		if a.board.outlived(f.change.Path, &stands.Node) {
			stands = standing{}
		}
		if f.unsure {
			if ad, ok := a.noEdit(f, stands.Node); ok {
				adopted = append(adopted, ad)
				continue
			}
		}
		a.follows(f, stands)
		kept = append(kept, *f)
	}
	return kept, a.adopt(adopted)
}

// standing is what stands at a path in the manifest.
type standing struct {
	manifest.Node
	own bool // the content came from a node of this name
}

// standings looks paths up in the manifest.
func (a *Agent) standings(paths []string) (map[string]standing, error) {
	stands := make(map[string]standing, len(paths))
	v, err := a.cfg.Log.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	err = manifest.GetAll(v, a.cfg.Node, paths, func(path string, n manifest.Node, own bool) { stands[path] = standing{n, own} })
	return stands, err
}

// follows bases an edit on what stands, if that came from this disk: what is found there now is what became of it. The
// placed record does not say so when the process died between the commit and the record, or before the record was
// safe; by its version the node's own earlier edit would pass for somebody else's, and the newer one would lose. After
// the system went down the disk itself may have gone back, and only the record tells. What a node of this name brought
// before this binding began came from another directory, or from an earlier moment of this one: what differs is merged.
func (a *Agent) follows(f *finding, stands standing) {
	never := f.old.Stat.Kind == manifest.Absent
	ours := stands.own && stands.Version > a.began
	if a.wentBack || !ours || stands.Version <= f.old.Version || f.old.Version == 0 && !never {
		return
	}
	f.change.Base, f.old.Version, f.old.Hash = stands.Version, stands.Version, contentOf(&stands.Node)
}

// adoption is a path whose state is recorded without a proposal.
type adoption struct {
	path   string
	had    manifest.Kind
	record record
	place  bool // the bytes are as wanted, the metadata is not
	young  bool // has to be read once more, see young.go
}

// noEdit says whether what was found is what the manifest has, and how to record it.
func (a *Agent) noEdit(f *finding, want manifest.Node) (adoption, bool) {
	if !a.cfg.Owner && want.Kind != manifest.Absent {
		f.keepOwner(&want)
	}
	if f.old.Version != 0 || want.Kind == manifest.Absent || !want.SameContent(f.change.Node) {
		return adoption{}, false
	}
	ad := adoption{path: f.change.Path, had: f.old.Stat.Kind, record: f.asFound(), young: f.young}
	if ad.place = !want.Equal(f.change.Node); !ad.place {
		ad.record.Version = want.Version
	}
	return ad, true
}

// keepOwner is for a node that does not set owners: an edit there leaves the owner as it stands, and so must not decide what
// runs as that (I14). The bits for that are those of the content that stands, if it is the same, and else none; bits that are
// the author's own, on a file of the author's own, are the author's to change.
func (f *finding) keepOwner(want *manifest.Node) {
	n := &f.change.Node
	foreign := n.UID != want.UID || n.GID != want.GID
	n.UID, n.GID = want.UID, want.GID
	if n.Kind != manifest.File {
		return
	}
	untouched := n.Mode&place.SetID == f.old.Stat.Mode&place.SetID
	switch same := want.SameContent(*n); {
	case same && (foreign || untouched):
		n.Mode = n.Mode&^place.SetID | want.Mode&place.SetID
	case foreign:
		n.Mode &^= place.SetID
	}
}

// adopt records, in one batch, and ends the looks.
func (a *Agent) adopt(all []adoption) error {
	if len(all) == 0 {
		return nil
	}
	e := a.table.edit()
	defer e.discard()
	for i := range all {
		if err := a.setRecord(e, all[i].path, all[i].had, all[i].record); err != nil {
			return err
		}
	}
	if err := e.commit(); err != nil {
		return err
	}
	for i := range all {
		if r := &all[i].record; r.Stat.Kind == manifest.File && r.Stat.Size > 0 {
			a.unsynced.add(all[i].path, r.Hash)
		}
		if all[i].place {
			a.rechecks.add(all[i].path, 0)
		}
		a.lookEnds(all[i].path, all[i].young)
	}
	a.board.nudge()
	return nil
}
