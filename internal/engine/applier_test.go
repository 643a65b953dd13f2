package engine

import (
	"errors"
	"testing"
	"testing/synctest"
)

// What was begun between two batches is waited for while the replica is being closed: its caller goes on only when nothing
// of it runs any more. What is never begun ends with the goroutine that would have done it.
func TestRunWaitsForWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &Observer{jobs: newApplyQueue()}
		o.tasks.Go(o.worker)
		mine := errors.New("mine")
		goOn, result := make(chan struct{}), make(chan error, 1)
		go func() { result <- o.between(func() error { <-goOn; return mine }) }()
		synctest.Wait()
		o.jobs.close()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("it returned %v while it ran", err)
		default:
		}
		close(goOn)
		if err := <-result; err != mine {
			t.Errorf("its result is %v", err)
		}
		o.tasks.Wait()
		if err := o.between(func() error { return nil }); err != ErrClosed {
			t.Errorf("after the end: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		q := newApplyQueue()
		result := make(chan error, 1)
		go func() { result <- q.run(func() error { return nil }) }()
		synctest.Wait()
		close(q.done) // as an applier ends that could not apply an entry
		if err := <-result; err != ErrClosed {
			t.Errorf("never begun: %v", err)
		}
	})
}

// Who asks for a digest is answered even if the applier ended because a configuration change was interrupted: the queue is
// then still open.
func TestDigestOfAReplicaThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Group{jobs: newApplyQueue()}
		result := make(chan error, 1)
		go func() {
			_, _, err := g.Digest()
			result <- err
		}()
		synctest.Wait()
		close(g.jobs.done)
		if err := <-result; err != ErrClosed {
			t.Errorf("its result is %v", err)
		}
	})
}
