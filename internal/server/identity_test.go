package server

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
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

// A server that cannot be given a certificate is not recorded as a node: it would count among the voters, and never answer.
func TestNoNodeWithoutACertificate(t *testing.T) {
	n, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer stopNode(t, n)
	token, err := access.ParseToken(tokenOf(t, n))
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	req := &access.JoinRequest{Token: token.ID, Secret: token.Secret, Name: "n2", Address: n.advertise, CSR: csr, Level: api.Level, Min: api.MinLevel}
	for what, spoil := range map[string]func([]byte) []byte{
		"no request at all": func([]byte) []byte { return []byte{1} },
		"a forged one":      func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b },
	} {
		req.CSR = spoil(csr)
		if _, err := n.letIn(t.Context(), req); err == nil {
			t.Errorf("%s was signed", what)
		}
		if _, is := n.ctl.state().NodeNamed("n2"); is {
			t.Fatalf("%s: the node is recorded", what)
		}
	}
	req.CSR = csr
	if _, err := n.letIn(t.Context(), req); err != nil {
		t.Error(err)
	}
}
