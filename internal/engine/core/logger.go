package core

import (
	"fmt"

	"go.etcd.io/raft/v3"
)

// NewLogger adapts raft's logger: debug and info lines are dropped unformatted, warnings and errors go to
// warn (nil: dropped too), panics carry the group and the replica.
func NewLogger(group, replica uint64, warn func(msg string)) raft.Logger {
	return &logger{group: group, replica: replica, warn: warn}
}

type logger struct {
	group, replica uint64
	warn           func(string)
}

func (l *logger) Debug(...any)          {}
func (l *logger) Debugf(string, ...any) {}
func (l *logger) Info(...any)           {}
func (l *logger) Infof(string, ...any)  {}

func (l *logger) Warning(v ...any)            { l.say(v) }
func (l *logger) Warningf(f string, v ...any) { l.sayf(f, v) }
func (l *logger) Error(v ...any)              { l.say(v) }
func (l *logger) Errorf(f string, v ...any)   { l.sayf(f, v) }

func (l *logger) Fatal(v ...any)            { panic(fmt.Sprint(v...)) }
func (l *logger) Fatalf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
func (l *logger) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (l *logger) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }

func (l *logger) say(v []any) {
	if l.warn != nil {
		l.warn(fmt.Sprintf("group %d replica %d: %s", l.group, l.replica, fmt.Sprint(v...)))
	}
}

func (l *logger) sayf(f string, v []any) {
	if l.warn != nil {
		l.warn(fmt.Sprintf("group %d replica %d: %s", l.group, l.replica, fmt.Sprintf(f, v...)))
	}
}

// Fault is what a panic that comes out of a Group's method carries: the group's invariants are broken (a
// lost log, a storage error), the replica must not go on. Other groups of the process are not touched.
type Fault struct {
	Group, Replica uint64
	Op             string // the Group's method
	Cause          any    // what was panicked with
}

func (f *Fault) Error() string {
	return fmt.Sprintf("group %d replica %d: %s: %v", f.Group, f.Replica, f.Op, f.Cause)
}

// Unwrap returns Cause if it is an error.
func (f *Fault) Unwrap() error {
	err, _ := f.Cause.(error)
	return err
}

// blame is deferred by every event method: it turns a panic into a *Fault.
func (g *Group) blame(op string) {
	if cause := recover(); cause != nil {
		if _, done := cause.(*Fault); !done {
			cause = &Fault{Group: g.cfg.Group, Replica: g.cfg.Replica, Op: op, Cause: cause}
		}
		panic(cause)
	}
}
