package files

import (
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// consult asks the manifest about findings that may be no edits: what was never placed here but is in the
// manifest with these bytes. Those are recorded as they are, and the rest is returned. One look-up serves the
// whole batch, because on the way in of a large tree every path is asked for.
func (a *Agent) consult(found []finding) ([]finding, error) {
	var paths []string
	for i := range found {
		if found[i].unsure {
			paths = append(paths, found[i].change.Path)
		}
	}
	if len(paths) == 0 {
		return found, nil
	}
	wants := make(map[string]manifest.Node, len(paths))
	v, err := a.cfg.Log.View()
	if err == nil {
		err = manifest.GetAll(v, paths, func(path string, n manifest.Node) { wants[path] = n })
		v.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compare what was found with the manifest: %w", err)
	}
	kept := found[:0]
	var adopted []adoption
	for i := range found {
		f := &found[i]
		if f.unsure {
			if ad, ok := a.noEdit(f, wants[f.change.Path]); ok {
				adopted = append(adopted, ad)
				continue
			}
		}
		kept = append(kept, *f)
	}
	return kept, a.adopt(adopted)
}

// adoption is a path whose state is recorded without a proposal.
type adoption struct {
	path   string
	had    manifest.Kind
	record record
	place  bool // the bytes are as wanted, the metadata is not
}

// noEdit says whether what was found is what the manifest has, and how to record it.
func (a *Agent) noEdit(f *finding, want manifest.Node) (adoption, bool) {
	if !a.cfg.Owner && want.Kind != manifest.Absent {
		f.change.Node.UID, f.change.Node.GID = want.UID, want.GID
	}
	if f.old.Version != 0 || want.Kind == manifest.Absent || !want.SameContent(f.change.Node) {
		return adoption{}, false
	}
	ad := adoption{path: f.change.Path, had: f.old.Stat.Kind, record: f.asFound()}
	if ad.place = !want.Equal(f.change.Node); !ad.place {
		ad.record.Version = want.Version
	}
	return ad, true
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
		if all[i].place {
			a.rechecks.add(all[i].path, 0)
		}
		a.board.lookDone(all[i].path, time.Time{})
	}
	a.board.nudge()
	return nil
}
