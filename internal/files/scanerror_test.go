package files

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// torn is a placed table of which the records in one directory cannot be read while it is told so.
type torn struct {
	kv.Store
	dir  string
	fail atomic.Bool
}

var errTorn = errors.New("the table is torn")

func (s *torn) Scan(from, to []byte, fn func(k, v []byte) error) error {
	if s.fail.Load() && string(from) == string(manifest.AppendChildrenKey([]byte{tagPlaced}, s.dir)) {
		return errTorn
	}
	return s.Store.Scan(from, to, fn)
}

// TestScanWithoutTable: a directory that cannot be compared, because the placed table cannot be read, ends the agent.
func TestScanWithoutTable(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	store := &torn{Store: nd.table, dir: "d"}
	nd.change = func(c *Config) { c.Table = store }
	f.up()
	must(t, os.Mkdir(nd.path("d"), 0o755))
	nd.write("d/f", "x")
	f.flush()
	store.fail.Store(true)
	nd.agent.scanSoon("d")
	select {
	case err := <-nd.ended:
		if !errors.Is(err, errTorn) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("goes on as if it had compared the directory")
		nd.stop()
		<-nd.ended
	}
	nd.ended <- nil
}

// TestUnreadIsReadAgain: what a scan could not read is a problem as long as that is so, and compared as soon as it can be.
func TestUnreadIsReadAgain(t *testing.T) {
	f := newFarm(t, 2)
	nd := f.nodes[0]
	var ahead atomic.Int64
	nd.change = func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	must(t, os.Mkdir(nd.path("d"), 0o755))
	nd.write("d/f", "hidden for now")
	if err := unix.Mount("files", nd.path("d"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("CANNOT: mount a tmpfs: %v", err)
	}
	mounted := true
	defer func() {
		if mounted {
			must(t, unix.Unmount(nd.path("d"), 0))
		}
	}()
	f.up()
	problems := func(want int) {
		t.Helper()
		eventually(t, func() string {
			st, err := nd.agent.Status()
			n := 0
			for _, p := range st.Problems {
				if p.Path == "d" && strings.Contains(p.What, "mounted") {
					n++
				}
			}
			if err != nil || n != want {
				return fmt.Sprintf("%+v %v", st.Problems, err)
			}
			return ""
		})
	}
	problems(1)
	must(t, unix.Unmount(nd.path("d"), 0))
	mounted = false
	ahead.Store(int64(2 * time.Minute))
	f.nodes[1].holds("d/f", "hidden for now")
	problems(0)
}
