package core

import (
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture reads a batch of proposals and a table of terms as version 1 wrote them.
func TestFixture(t *testing.T) {
	terms := Terms{}.Note(Position{Term: 1, Index: 1}).Note(Position{Term: 3, Index: 300}).Note(Position{Term: 4, Index: 301})
	held := fixture.Check(t, "entry-1.hex", map[string][]byte{"batch": EncodeBatch(&sampleBatch), "terms": terms.Append(nil)})
	b, err := DecodeBatch(held["batch"])
	if err != nil || !reflect.DeepEqual(b, sampleBatch) {
		t.Errorf("batch %+v, %v", b, err)
	}
	got, err := DecodeTerms(held["terms"])
	if err != nil || !got.Equal(terms) {
		t.Errorf("terms %+v, %v", got, err)
	}
	if term, ok := got.At(300); term != 3 || !ok {
		t.Errorf("entry 300 is of term %d, %v", term, ok)
	}
}
