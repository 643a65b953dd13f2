package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// isRefused: the peer's kernel answered that nobody listens.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isReset: the stream was ended by the other side.
func isReset(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isSilence: nobody answered at all.
func isSilence(err error) bool {
	var op *net.OpError
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &op) && op.Op == "dial"
}
