// Command lockstep keeps directories of a farm of servers in step: the daemon, its command line and the demo.
// Everything is in package cli and, for `serve`, in package server; here they are put together.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/cli"
	"github.com/lockstep-sync/lockstep/internal/server"
)

func main() { os.Exit(run()) }

// run is main with an exit status; the command scripts run it, too.
func run() int {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup: then the end of the terminal means nothing
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	return cli.Main(ctx, cli.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Build: build(), Serve: serve, OfflineRecover: offlineRecover, OfflineLog: offlineLog, Backup: backupFile, TryRestore: server.TryRestore})
}

// build is what the linker wrote into this binary.
func build() api.Version {
	v := api.Version{Version: "devel", Go: runtime.Version(), Level: api.Level, MinLevel: api.MinLevel}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}
