package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// How long the other side of a backup's or an upload's stream may say, or take, nothing. A member that sends a group
// compares its whole state with what it has sent before the last bytes come; a seed syncs before it answers.
const (
	streamSilence = 2 * time.Minute
	syncSilence   = 10 * time.Minute
)

// attended is a stream to a node that is not waited for without bound: a read, or a write, fails once nothing has moved for
// that long.
type attended struct {
	net.Conn
	name    string // of the node
	silence time.Duration
}

func (h *attended) Read(b []byte) (int, error) {
	if err := h.SetReadDeadline(time.Now().Add(h.silence)); err != nil {
		return 0, err
	}
	n, err := h.Conn.Read(b)
	return n, h.explain(err, "has sent nothing")
}

func (h *attended) Write(b []byte) (int, error) {
	if err := h.SetWriteDeadline(time.Now().Add(h.silence)); err != nil {
		return 0, err
	}
	n, err := h.Conn.Write(b)
	return n, h.explain(err, "has taken nothing")
}

func (h *attended) explain(err error, what string) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s %s for %s: %w", h.name, what, h.silence, err)
	}
	return err
}
