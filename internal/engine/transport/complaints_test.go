package transport

import (
	"fmt"
	"testing"
	"time"
)

func TestComplaintsAreLimited(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newComplaints(func() time.Time { return now })
	if _, ok := c.say("a"); !ok {
		t.Fatal("the first is not said")
	}
	for range 7 {
		now = now.Add(time.Second)
		if _, ok := c.say("a"); ok {
			t.Fatal("the same is said again within a minute")
		}
	}
	if _, ok := c.say("b"); !ok {
		t.Error("another one is silenced by the first")
	}
	now = now.Add(complaintEvery)
	if unsaid, ok := c.say("a"); !ok || unsaid != 7 {
		t.Errorf("after a minute: %v, %d times unsaid", ok, unsaid)
	}
	now = now.Add(-time.Hour)
	if _, ok := c.say("a"); !ok {
		t.Error("a clock that went back silences")
	}
	said := 0
	for i := range 10 * maxComplaints {
		if _, ok := c.say(fmt.Sprint("stranger ", i)); ok {
			said++
		}
	}
	if len(c.said) > maxComplaints+1 || said > maxComplaints+1 {
		t.Errorf("%d strangers are remembered, %d lines were said", len(c.said), said)
	}
	now = now.Add(2 * complaintEvery)
	if _, ok := c.say("late"); !ok || len(c.said) > 2 {
		t.Errorf("a minute later %d are remembered", len(c.said))
	}
}
