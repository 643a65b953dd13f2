package transport

import (
	"sync"
	"time"
)

const (
	// complaintEvery is how often the same is said about the same stranger or peer.
	complaintEvery = time.Minute
	// maxComplaints bounds what is remembered of strangers: the rest share one place.
	maxComplaints = 1024
)

// complaints decides what is worth a line in the log of what comes in from outside: whoever keeps knocking with a wrong
// certificate, or keeps sending garbage, gets one a minute, with how often it was since the last.
type complaints struct {
	now func() time.Time

	mu   sync.Mutex
	said map[string]*complaint
}

type complaint struct {
	at    time.Time // of the last line
	since uint64    // how often since
}

func newComplaints(now func() time.Time) *complaints {
	return &complaints{now: now, said: map[string]*complaint{}}
}

// say returns whether to say something about key now, and how often it was not said since the last time.
func (c *complaints) say(key string) (unsaid uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.said[key] == nil && len(c.said) >= maxComplaints {
		c.forget(now)
		if len(c.said) >= maxComplaints {
			key = ""
		}
	}
	last := c.said[key]
	if last == nil {
		c.said[key] = &complaint{at: now}
		return 0, true
	}
	// A clock that went back silences nobody.
	if d := now.Sub(last.at); d >= 0 && d < complaintEvery {
		last.since++
		return 0, false
	}
	unsaid = last.since
	last.at, last.since = now, 0
	return unsaid, true
}

// forget drops what was last said long ago.
func (c *complaints) forget(now time.Time) {
	for key, last := range c.said {
		if now.Sub(last.at) >= complaintEvery {
			delete(c.said, key)
		}
	}
}
