package files

import (
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// forgetBatch is how many records are rewritten at a time.
const forgetBatch = 4096

// ForgetAbove is called on the table of a binding that is not open, when the group has got a new history that shares
// positions up to index only: versions above it mean something else there. Records with such versions are dropped, so
// that what is on disk is compared as the file of a new member is, and kept if it differs. So is what was announced.
func ForgetAbove(store kv.Store, index uint64) error {
	t := table{store}
	if err := t.dropAnnouncement(); err != nil {
		return err
	}
	var after []byte
	for more := true; more; {
		var found []string
		more = false
		err := t.walk(store, after, func(key []byte, path string, r record) error {
			after = append(after[:0], key...)
			if r.Version > index {
				found = append(found, path)
			}
			if len(found) == forgetBatch {
				more = true
				return kv.ErrStop
			}
			return nil
		})
		if err != nil {
			return err
		}
		e := t.edit()
		for _, path := range found {
			if err := e.set(path, record{}); err != nil {
				e.discard()
				return err
			}
		}
		if err := e.commit(); err != nil {
			return err
		}
	}
	return nil
}
