// Package server builds a node out of its parts and owns the order in which they start and stop. It is the only
// package that knows everything.
//
// Start: data directory (locked) → identity (made, joined or loaded) → port → log and state → transport →
// engine → control group → what the control group says this node holds → doors. Stop runs backwards: doors,
// agents, hand-over of leadership, goodbye to the peers, engine, stores. A killed process skips all of it and
// loses nothing.
//
// Goroutines: one that follows the control group, one that drives memberships, those of the doors; Run waits
// for all.
package server
