package server

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestBackupGoesOnWithoutASilentMember: a member that stops midway, without its connection ending, costs a bounded time;
// the next one is asked, and what it sends makes the backup whole.
func TestBackupGoesOnWithoutASilentMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{log: slog.New(slog.DiscardHandler)}
		n.ctl = newControlPlane()
		n.ctl.current.Store(&control.State{})
		var fragment bytes.Buffer
		f := backup.NewFragment(&fragment, nil)
		text := strings.Repeat("content", 1000)
		if _, err := f.Content(blake3.Sum256([]byte(text)), uint64(len(text)), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		if err := f.EndGroup(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var asked []uint64
		open := func(m control.Member) (io.ReadCloser, error) {
			asked = append(asked, m.Node)
			here, there := net.Pipe()
			go func() {
				if _, err := io.ReadFull(there, make([]byte, 8)); err != nil {
					t.Error(err)
				}
				if m.Node == 3 {
					there.Write(fragment.Bytes())
				} else {
					there.Write(fragment.Bytes()[:fragment.Len()/2]) // and then it is stopped
				}
				<-t.Context().Done()
				there.Close()
			}()
			return askBackup(t.Context(), &attended{here, "n2", streamSilence}, 7)
		}
		var out bytes.Buffer
		w := backup.NewFragment(&out, nil)
		if err := n.backUpFrom(t.Context(), w, &control.Group{Name: "web"}, []control.Member{{Node: 2}, {Node: 3}}, open); err != nil || len(asked) != 2 {
			t.Errorf("asked %v: %v", asked, err)
		}
		if took := time.Since(began); took != streamSilence {
			t.Errorf("took %s", took)
		}
		err := n.backUpFrom(t.Context(), backup.NewFragment(io.Discard, nil), &control.Group{Name: "web"}, []control.Member{{Node: 2}}, open)
		if err == nil || !strings.Contains(err.Error(), "n2 has sent nothing for 2m0s") {
			t.Errorf("nobody else: %v", err)
		}
	})
}

// TestSilentReader: who takes nothing is not waited for either, and the reason is kept.
func TestSilentReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		_, err := (&attended{here, "n2", streamSilence}).Write([]byte("x"))
		if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "n2 has taken nothing") {
			t.Error(err)
		}
	})
}
