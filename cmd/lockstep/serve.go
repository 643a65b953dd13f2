package main

import (
	"context"

	"github.com/lockstep-sync/lockstep/internal/cli"
	"github.com/lockstep-sync/lockstep/internal/server"
)

// serve runs a node.
func serve(ctx context.Context, c cli.ServeConfig) error {
	server.SpareProcessors()
	return server.Run(ctx, server.Config{
		Data: c.Data, Name: c.Name, Listen: c.Listen, Advertise: c.Advertise, API: c.API, Join: c.Join, Zone: c.Zone, Replace: c.Replace,
		Version: build(), Log: c.Log, SnapshotRate: c.SnapshotRate,
	})
}
