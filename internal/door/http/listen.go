package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// maxSocketPath is what sockaddr_un has room for, without its terminating zero.
const maxSocketPath = 107

// SocketName is the API's socket in a node's data directory.
const SocketName = "lockstep.sock"

// listenUnix makes a socket of mode 0660 at path. A socket that nobody listens on any more is replaced.
// It is made and given its mode in a private directory and then renamed, so nobody can connect before.
func listenUnix(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := checkSocketFree(ctx, path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, listenError(path, err)
	}
	defer os.RemoveAll(dir)
	private := filepath.Join(dir, "s")
	if len(private) > maxSocketPath || len(path) > maxSocketPath {
		return nil, &api.Error{Code: api.CodeUsage, Op: "listen on", Subject: path,
			Why:  fmt.Sprintf("the path of a unix socket must be at most %d bytes long", maxSocketPath),
			Hint: "choose a data directory with a shorter path"}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, listenError(path, err)
	}
	l.SetUnlinkOnClose(false) // its name changes below
	if err := errors.Join(os.Chmod(private, 0o660), os.Rename(private, path)); err != nil {
		return nil, errors.Join(listenError(path, err), l.Close())
	}
	return l, nil
}

// checkSocketFree reports who or what is in the way at path.
func checkSocketFree(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return listenError(path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return &api.Error{Code: api.CodeConflict, Op: "listen on", Subject: path,
			Why: "something that is not a socket is in its place", Hint: "move it away"}
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return &api.Error{Code: api.CodeConflict, Op: "listen on", Subject: path,
			Why:  "another lockstep process is serving this data directory",
			Hint: "stop it first, or give this node a data directory of its own with --data"}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil // left behind by a process that is gone
	default:
		return listenError(path, err)
	}
}

// listenLoopback listens on address, which must not be reachable from elsewhere.
func listenLoopback(ctx context.Context, address string) (net.Listener, error) {
	if err := CheckAPIAddress(address); err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, listenError(address, err)
	}
	return l, nil
}

// CheckAPIAddress tells whether the door would listen on HOST:PORT: HOST is localhost or a loopback address.
func CheckAPIAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return &api.Error{Code: api.CodeUsage, Op: "listen on", Subject: strconv.Quote(address),
			Why: "not an address", Hint: "write HOST:PORT, for instance 127.0.0.1:" + strconv.Itoa(api.DefaultPort)}
	}
	if !loopbackHost(host) {
		return &api.Error{Code: api.CodeDenied, Op: "listen on", Subject: address,
			Why:  "the API has no authentication yet and is served on loopback only",
			Hint: "use 127.0.0.1:" + port + ", or reach it from elsewhere through ssh -L"}
	}
	return nil
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func listenError(subject string, err error) error {
	e := &api.Error{Code: api.CodeFailed, Op: "listen on", Subject: subject, Why: err.Error()}
	var sys syscall.Errno
	if errors.As(err, &sys) {
		e.Why = sys.Error()
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Code, e.Hint = api.CodeConflict, "another process has this port; choose another with --api HOST:PORT"
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Hint = api.CodeDenied, "check the owner and mode of the directory, or the port number (below 1024 needs root)"
	}
	return e
}
