// Package test has no code: its tests run clusters of real processes (package farm) and kill, stop, cut off, damage and
// misuse them. rsync and histories of clients are the judges.
package test
