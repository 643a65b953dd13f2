package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// clusterKey finds the cluster that a script has started.
type clusterKey struct{}

// nodeOf is the node of that name of the script's cluster.
func nodeOf(ts *testscript.TestScript, name string) *farm.Node {
	f := *ts.Value(clusterKey{}).(**farm.Farm)
	if f == nil {
		ts.Fatalf("start a cluster first")
	}
	i := slices.IndexFunc(f.Nodes, func(n *farm.Node) bool { return n.Name == name })
	if i < 0 {
		ts.Fatalf("the cluster has no node %s", name)
	}
	return f.Nodes[i]
}

// stopNode stops a node in an orderly way: down n1; or kills it: down -9 n1
func stopNode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 || len(args) == 2 && args[0] != "-9" {
		ts.Fatalf("usage: down [-9] NODE")
	}
	n := nodeOf(ts, args[len(args)-1])
	signal := syscall.SIGTERM
	if len(args) == 2 {
		signal = syscall.SIGKILL
	}
	ts.Check(n.Signal(signal, true))
}

// startNode runs a node that was stopped: up n1
func startNode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: up NODE")
	}
	n := nodeOf(ts, args[0])
	ts.Check((*ts.Value(clusterKey{}).(**farm.Farm)).Run(n, ""))
}

// flip inverts a byte of a file, at a sum of offsets: flip n1/data/log/00000001.seg 4096+70
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET[+OFFSET]…")
	}
	at := int64(0)
	for part := range strings.SplitSeq(args[1], "+") {
		n, err := strconv.ParseInt(part, 10, 64)
		ts.Check(err)
		at += n
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	ts.Check(err)
	b[0] = ^b[0]
	_, err = f.WriteAt(b, at)
	ts.Check(err)
	ts.Check(f.Close())
}

// snapshot writes what a directory holds into a file: names, sizes, times, contents. snapshot n1/data before
func snapshot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: snapshot DIR FILE")
	}
	var b strings.Builder
	root := ts.MkAbs(args[0])
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s %s", path, info.Mode(), info.ModTime())
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x", len(content), sha256.Sum256(content))
		}
		b.WriteString("\n")
		return nil
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(b.String()), 0o644))
}
