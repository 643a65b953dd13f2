package server

import "testing"

// TestCommitted: a status that is older than the state does not say that less is committed than is applied.
func TestCommitted(t *testing.T) {
	for _, c := range []struct{ published, applied, want uint64 }{{3, 4, 4}, {4, 3, 4}, {0, 0, 0}} {
		if got := committed(c.published, c.applied); got != c.want {
			t.Errorf("published %d, applied %d: %d, want %d", c.published, c.applied, got, c.want)
		}
	}
}
