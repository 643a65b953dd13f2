package files

import (
	"container/heap"
	"time"
)

// alarms are paths that wait for a time each. To ask which are due costs next to nothing however many wait. The zero alarms
// is ready.
type alarms struct {
	at    map[string]time.Time
	queue alarmQueue // also of alarms that were changed or dropped since, see crowded
}

type alarm struct {
	path string
	at   time.Time
}

func (a *alarms) has(path string) bool { _, ok := a.at[path]; return ok }

// set has path wait until at, and not for what it waited for before.
func (a *alarms) set(path string, at time.Time) {
	if a.at == nil {
		a.at = map[string]time.Time{}
	}
	a.at[path] = at
	heap.Push(&a.queue, alarm{path, at})
	if a.crowded() {
		a.queue = a.queue[:0]
		for path, at := range a.at {
			a.queue = append(a.queue, alarm{path, at})
		}
		heap.Init(&a.queue)
	}
}

// crowded says whether more of the queue is void than not.
func (a *alarms) crowded() bool { return len(a.queue) > 2*len(a.at)+64 }

func (a *alarms) drop(path string) {
	delete(a.at, path)
	if len(a.at) == 0 {
		*a = alarms{}
	}
}

// next drops and returns a path that is due.
func (a *alarms) next(now time.Time) (path string, ok bool) {
	for len(a.queue) > 0 && !a.queue[0].at.After(now) {
		due := heap.Pop(&a.queue).(alarm)
		if at, ok := a.at[due.path]; ok && at.Equal(due.at) {
			a.drop(due.path)
			return due.path, true
		}
	}
	return "", false
}

// alarmQueue is a heap, the earliest first.
type alarmQueue []alarm

func (q alarmQueue) Len() int           { return len(q) }
func (q alarmQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q alarmQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *alarmQueue) Push(x any)        { *q = append(*q, x.(alarm)) }
func (q *alarmQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = alarm{}
	*q = old[:len(old)-1]
	return last
}
