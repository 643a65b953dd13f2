package main

import (
	"context"
	"log/slog"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/cli"
	"github.com/lockstep-sync/lockstep/internal/server"
)

// offlineRecover recovers the control group on a stopped node.
func offlineRecover(ctx context.Context, c cli.OfflineRecover) (api.OfflineRecovered, error) {
	return server.OfflineRecover(ctx, c.Data, c.Confirm, c.Doubtful, slog.New(slog.DiscardHandler))
}

// offlineLog looks at the log of a stopped node.
func offlineLog(data string, progress func(api.Progress)) cli.OfflineLog {
	return server.OfflineLog{Data: data, Progress: progress}
}

// backupFile reads a backup without a node.
func backupFile(path string, progress func(api.Progress)) cli.BackupFile {
	return server.BackupFile{Path: path, Progress: progress}
}
