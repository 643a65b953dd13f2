package files

import (
	"os"
	"testing"
)

func TestOneFile(t *testing.T) {
	f := newFarm(t, 3)
	f.up()
	f.flush()
	f.nodes[0].write("a", "hello")
	f.flush()
	f.same()
	if got := f.nodes[2].read("a"); got != "hello" {
		t.Error(got)
	}
	f.nodes[1].write("a", "changed")
	f.flush()
	f.same()
	must(t, os.Remove(f.nodes[2].path("a")))
	f.flush()
	f.same()
	if s, _ := snapshot(f.nodes[0].root); len(s) != 1 {
		t.Error(s)
	}
}
