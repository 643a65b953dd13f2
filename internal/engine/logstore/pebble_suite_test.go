package logstore_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

func open(t *testing.T, dir string, o logstore.PebbleOptions) logstore.Store {
	t.Helper()
	s, err := logstore.OpenPebble(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPebble(t *testing.T) {
	logstoretest.Run(t, func(t *testing.T) logstore.Store {
		return open(t, "log", logstore.PebbleOptions{FS: vfs.NewMem()})
	})
}

// With hardly any cache every read goes to the database.
func TestPebbleWithoutCache(t *testing.T) {
	logstoretest.Run(t, func(t *testing.T) logstore.Store {
		return open(t, "log", logstore.PebbleOptions{FS: vfs.NewMem(), GroupCacheBytes: 1, CacheBytes: 1})
	})
}

// A cache that holds some of the entries splits reads between memory and database.
func TestPebbleWithSmallCache(t *testing.T) {
	logstoretest.Run(t, func(t *testing.T) logstore.Store {
		return open(t, "log", logstore.PebbleOptions{FS: vfs.NewMem(), GroupCacheBytes: 500, CacheBytes: 5000})
	})
}

func TestMemory(t *testing.T) {
	logstoretest.Run(t, func(*testing.T) logstore.Store { return logstore.NewMemory() })
}
