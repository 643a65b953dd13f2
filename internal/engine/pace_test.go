package engine

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestPaceGivesSignsOfLife: at whatever rate, who gets a state hears from its source much more often than it has patience,
// also when several are sent at once; and the rate is kept.
func TestPaceGivesSignsOfLife(t *testing.T) {
	for _, rate := range []uint64{1 << 10, 16 << 10, 1 << 20, 1 << 30} {
		synctest.Test(t, func(t *testing.T) {
			const others = 8
			p := &pace{rate: rate}
			size := min(1<<20, rate*120)
			began := time.Now()
			ended := make(chan error, others)
			for range others {
				here, there := net.Pipe()
				go func() {
					_, err := p.wrap(here, t.Context()).Write(make([]byte, size))
					ended <- err
					here.Close()
				}()
				go func() {
					last := time.Now()
					for b := make([]byte, 1<<20); ; last = time.Now() {
						_, err := there.Read(b)
						if silent := time.Since(last); silent > snapSilence/10 {
							t.Errorf("at %d B/s nothing came for %s", rate, silent)
						}
						if err != nil {
							if err != io.EOF {
								t.Error(err)
							}
							return
						}
					}
				}()
			}
			for range others {
				if err := <-ended; err != nil {
					t.Errorf("at %d B/s: %v", rate, err)
				}
			}
			least := time.Duration(float64(others*size)/float64(rate)*float64(time.Second)) - time.Second
			if took := time.Since(began); took < least {
				t.Errorf("at %d B/s %d bytes took %s", rate, others*size, took)
			}
			synctest.Wait()
		})
	}
}
