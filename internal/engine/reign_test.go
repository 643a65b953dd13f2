package engine

import (
	"testing"
	"time"
)

// TestLeaderThatCannotAnswer: a leader that hears nobody, or that nobody hears, keeps those who asked it waiting only until
// another one is found. Nothing is refused and no connection ends, so without that they would wait for as long as they are
// ever willing to.
func TestLeaderThatCannotAnswer(t *testing.T) {
	for name, heard := range map[string]bool{"is not heard": false, "does not hear": true} {
		for writer, limit := range map[string]time.Duration{"voter": 0, "observer": 2 * time.Second} {
			t.Run(name+", "+writer, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					f := newFarm(t, 3, nil)
					defer f.close()
					f.write(3, 100)
					leader := f.groups[1].Core().Leader
					rest := []uint64{leader%3 + 1, (leader+1)%3 + 1}
					f.observe(11, rest...)
					f.reaches(11)
					from := map[string]uint64{"voter": rest[0], "observer": 11}[writer]
					f.session = f.fabric.engine(from).NewSession(testGroup, f.voters, [16]byte{2})
					f.write(3, 100) // it knows who leads
					for _, other := range append(rest, 11) {
						if heard {
							f.fabric.lose(other, leader)
						} else {
							f.fabric.lose(leader, other)
						}
					}
					began := time.Now()
					f.write(1, 100)
					// Ticks are of 50 ms: an election takes 600; one that does not hear notices it after 1,000 at the latest.
					limit += 700 * time.Millisecond
					if heard {
						limit += time.Second
					}
					gap := time.Since(began)
					t.Logf("%v", gap)
					if gap > limit {
						t.Errorf("the write took %v, at most %v is fine", gap, limit)
					}
					f.write(3, 100)
					f.reaches(11)
				})
			})
		}
	}
}
