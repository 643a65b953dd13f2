package test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// accessOf is mode and owner of a directory.
func accessOf(path string) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
}

// TestBindingALiveDirectory: a directory in use is bound together with one that is made for it, by a node whose umask lets
// nobody in. Its mode and owner stay, the other one gets them, and both are there when the command is over: a script may
// copy into them.
func TestBindingALiveDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners are set by root only")
	}
	ctx, f := cluster(t, 1)
	n1 := f.Nodes[0]
	n2, err := f.AddAt(ctx, farm.Place{Under: []string{"sh", "-c", `umask 077; exec "$@"`, "sh"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	const want = "2775 33:33"
	for round := range 4 {
		name := fmt.Sprintf("web%d", round)
		live, made := filepath.Join(n1.Tree, name), filepath.Join(n2.Tree, "srv", name, "tree")
		if err := os.Mkdir(live, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := os.WriteFile(filepath.Join(live, fmt.Sprint(i)), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(live, 33, 33); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(live, 0o775|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		run(t, f, n1, "dir", "create", name, "--on", "n1:"+live+",n2:"+made)
		for _, dir := range []string{live, made} {
			if err := os.WriteFile(filepath.Join(dir, "copied to "+filepath.Base(dir)), []byte("x"), 0o644); err != nil {
				t.Errorf("right after the command: %v", err)
			}
		}
		if w, err := n1.Client.DirWait(ctx, name, api.DirWaitFor{Mode: api.WaitAll, Timeout: "30s"}, nil); err != nil || len(w.Missing) > 0 {
			t.Fatalf("wait: %+v %v", w, err)
		}
		for dir, want := range map[string]string{live: want, made: want, filepath.Dir(made): "0755 0:0"} {
			if got := accessOf(dir); got != want {
				t.Errorf("round %d: %s has %s, want %s", round, dir, got, want)
			}
		}
	}
}
