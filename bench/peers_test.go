package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

func TestAMissingPeerSaysHowToInstallIt(t *testing.T) {
	o := &outcome{}
	for range 2 {
		o.beside(t.Context(), peer{"nothing", []string{"sh", "no-such-command"}, "a-package"}, nil)
	}
	if len(o.Without) != 1 || !strings.Contains(o.Without[0], "no-such-command") || !strings.Contains(o.Without[0], "apt-get install a-package") {
		t.Errorf("%q", o.Without)
	}
}

func TestAPeerThatEndsIsNotWaitedFor(t *testing.T) {
	s := newServers(t.TempDir())
	if err := s.start([]string{"WORD=broken"}, "sh", "-c", "echo $WORD; exit 3"); err != nil {
		t.Fatal(err)
	}
	err := s.await(t.Context(), func() error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "exit status 3: broken") {
		t.Error(err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

func TestStopEndsWhatAPeerStarted(t *testing.T) {
	s := newServers(t.TempDir())
	if err := s.start(nil, "sh", "-c", "sleep 1000 & echo $! > child; wait"); err != nil {
		t.Fatal(err)
	}
	var child int
	if err := s.await(t.Context(), func() error {
		b, err := os.ReadFile(filepath.Join(s.dir, "child"))
		if err == nil {
			child, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	err := farm.Poll(t.Context(), time.Millisecond, func() error { // who reaps it is not this process
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return errors.New("it runs")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
