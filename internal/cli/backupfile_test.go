package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
)

// soundBackup is a file that passes as a backup, whatever is in it.
type soundBackup struct{ BackupFile }

func (soundBackup) Verify(ctx context.Context) (api.BackupInfo, error) {
	return api.BackupInfo{}, ctx.Err()
}

func (soundBackup) Request(ctx context.Context, group string) (api.Restore, api.BackupInfo, error) {
	return api.Restore{Group: group, As: group}, api.BackupInfo{}, ctx.Err()
}

func (soundBackup) Send(ctx context.Context, _ string, w io.Writer) error {
	if _, err := io.WriteString(w, "begun"); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// against runs a command against a node that answers so.
func against(ctx context.Context, handler http.HandlerFunc, args ...string) (code int, errs string) {
	s := httptest.NewServer(handler)
	defer s.Close()
	var out, text bytes.Buffer
	code = Main(ctx, Env{Args: append(args, "--server", strings.TrimPrefix(s.URL, "http://")), Stdout: &out, Stderr: &text,
		Getenv: func(string) string { return "" },
		Backup: func(string, func(api.Progress)) BackupFile { return soundBackup{} }})
	return code, text.String()
}

// TestBackupCreateReplacesNothing: a file that gets the name while the backup is made stays as it is, a second command
// with the same name does not write into the first one's file, and nothing else is left behind.
func TestBackupCreateReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "b")
	code, errs := against(t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		inner, text := against(t.Context(), func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "first") }, "backup", "create", file)
		if inner != 0 {
			t.Errorf("the first: %d, %s", inner, text)
		}
		io.WriteString(w, "second, and longer")
	}, "backup", "create", file)
	if code != 5 || !strings.Contains(errs, "the file exists") {
		t.Errorf("the second: %d, %s", code, errs)
	}
	onlyHolds(t, dir, "b", "first")

	gone, cancel := context.WithCancel(t.Context())
	code, errs = against(gone, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "half")
		cancel()
	}, "backup", "create", filepath.Join(dir, "c"))
	if code != 130 {
		t.Errorf("interrupted: %d, %s", code, errs)
	}
	onlyHolds(t, dir, "b", "first")
}

func onlyHolds(t *testing.T, dir, name, content string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("left: %v, %v", entries, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != content {
		t.Errorf("%s holds %q, %v", name, b, err)
	}
}

// TestRestoreInterrupted says that it was, and how things are.
func TestRestoreInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	code, errs := against(ctx, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 { // whether it can be done
			io.WriteString(w, "{}")
			return
		}
		if _, err := io.ReadFull(r.Body, make([]byte, 10)); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		cancel()
		io.Copy(io.Discard, r.Body)
	}, "restore", "b", "--group", "web", "--over-living")
	if code != 130 || !strings.Contains(errs, "interrupted: not everything had been sent") || !strings.Contains(errs, "→ nothing was restored") {
		t.Errorf("%d, %s", code, errs)
	}
	code, errs = against(ctx, nil, "restore", "b", "--group", "web")
	if code != 130 || !strings.Contains(errs, "interrupted: nothing had been done") {
		t.Errorf("before it began: %d, %s", code, errs)
	}
}
