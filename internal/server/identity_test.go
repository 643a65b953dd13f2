package server

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// A start that cannot write what a node with an identity begins with leaves no identity: the next one begins as the first
// did, and not as a node that has lost its cluster.
func TestNoIdentityWithoutWhatItBeginsWith(t *testing.T) {
	of, err := upNode(t, filepath.Join(t.TempDir(), "of"), "of", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer stopNode(t, of)
	for name, c := range map[string]struct{ token, blocked string }{
		"a new cluster, its description":      {"", initFile},
		"a new cluster, its peers":            {"", hintFile},
		"a node that joins, where others are": {tokenOf(t, of), hintFile},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := openDataDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer data.Close()
			block := data.sub(c.blocked + ".new") // where it is written first
			if err := os.Mkdir(block, 0o700); err != nil {
				t.Fatal(err)
			}
			cfg := Config{Data: data.path, Name: "n1", Join: c.token, Log: slog.New(slog.DiscardHandler)}
			if _, err := begin(t.Context(), cfg, of.advertise, data); err == nil {
				t.Fatal("it began without a file that it needs")
			}
			if _, err := access.Load(data.path, time.Now); !errors.Is(err, access.ErrNoIdentity) {
				t.Fatalf("an identity was left behind: %v", err)
			}
			if err := os.Remove(block); err != nil {
				t.Fatal(err)
			}
			cfg.Replace = c.token != "" // the cluster has let it in
			s, err := begin(t.Context(), cfg, of.advertise, data)
			if err != nil {
				t.Fatalf("the next start: %v", err)
			}
			if (s.init == nil) != (c.token != "") {
				t.Errorf("it begins with the description %v", s.init)
			}
		})
	}
}
