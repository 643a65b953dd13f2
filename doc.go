// Package lockstep is the root of the module and has no code: cmd/lockstep is the program, client and api are its Go
// interface, and ARCHITECTURE.md tells of the rest. Its tests hold the rules of the house that concern every package.
package lockstep
