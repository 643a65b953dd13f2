package main

import (
	"context"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/cli"
)

// serve runs a node.
func serve(context.Context, cli.ServeConfig) error {
	return &api.Error{Code: api.CodeUnavailable, Op: "serve", Why: "this build has no node in it"}
}
