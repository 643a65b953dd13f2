// Package server builds a node out of its parts and owns the order in which they start and stop. It is the only
// package that knows everything.
//
// Start: data directory (locked) → identity (made, joined or loaded) → port → log and state → transport →
// engine → control group → what the control group says this node holds → doors. Stop runs backwards: doors,
// agents, hand-over of leadership, goodbye to the peers, engine, stores. A killed process skips all of it and
// loses nothing.
//
// Goroutines: ARCHITECTURE.md lists them. Run waits for all, except where the disk is full or the start was told to stop:
// then the process ends with what still waits.
package server
