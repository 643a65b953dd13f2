package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

var update = flag.Bool("update", false, "rewrite the scripts with what the commands print now")

// TestMain lets the test binary be `lockstep` when a script, or the demo in one, calls it so.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lockstep": main})
}

// TestScripts runs the command scripts against the real program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "internal", "cli", "testdata", "script"),
		UpdateScripts:       *update,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("LOCKSTEP_DATA", filepath.Join(env.WorkDir, "data"))
			env.Values[clusterKey{}] = new(*farm.Farm)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fakeapi":   fakeAPI,
			"status":    status,
			"cluster":   startCluster,
			"until":     until,
			"until-not": untilNot,
			"down":      stopNode,
			"up":        startNode,
			"flip":      flip,
			"snapshot":  snapshot,
			"gone":      gone,
			"appears":   appears,
			"capture":   capture,
			"shape":     shape,
		},
	})
}

// status runs a command and checks its exit status: status 2 lockstep dir …
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s (%v), want %s", got, err, args[0])
	}
}

// fakeAnswer is what the fake node says to one route. Lines are sent one by one when a stream is asked for.
type fakeAnswer struct {
	Status int
	Body   json.RawMessage
	Lines  []json.RawMessage
}

// fakeAPI serves the answers of a JSON file (by method and URL) as a node would, until the script ends, and
// points LOCKSTEP_SERVER at it. What it was asked is in the file asked.
func fakeAPI(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fakeapi FILE")
	}
	var answers map[string]fakeAnswer
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &answers))
	asked, err := os.Create(ts.MkAbs("asked"))
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		key := r.Method + " " + r.URL.RequestURI()
		if _, werr := fmt.Fprintf(asked, "%s %s\n", key, body); err != nil || werr != nil {
			panic(fmt.Sprint(err, werr))
		}
		answer(w, key, answers)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	ts.Defer(func() {
		server.Close()
		<-done
		asked.Close()
	})
	ts.Setenv("LOCKSTEP_SERVER", l.Addr().String())
}

func answer(w http.ResponseWriter, key string, answers map[string]fakeAnswer) {
	a, ok := answers[key]
	if !ok {
		http.Error(w, "no answer for "+key, http.StatusTeapot)
		return
	}
	if a.Status != 0 {
		w.WriteHeader(a.Status)
	}
	for _, line := range a.Lines {
		fmt.Fprintf(w, "%s\n", line)
	}
	w.Write(a.Body)
}
