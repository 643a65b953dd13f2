package transport

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// urgentClass is the type of service of what writes wait for: AF21, low-latency data (RFC 4594).
	urgentClass = 18 << 2
	// urgentPriority is the highest priority that needs no privilege; pfifo_fast and mq send it before anything else.
	urgentPriority = 6
)

// hasten has the kernel, and networks that heed it, send what is written to a connection before what waits in the same
// queue for a network that is slower: states, contents and feeds, which go as fast as they can, on connections of their own.
func hasten(conn net.Conn) error {
	s, ok := conn.(syscall.Conn)
	if !ok {
		return nil // not a socket: there is no queue
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("hasten a connection: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		class := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, urgentClass)
		if class6 := unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, urgentClass); class6 == nil {
			class = nil // a socket of IPv6 need not take the other
		}
		// After the class, which brings a priority with it.
		failed = errors.Join(class, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, urgentPriority))
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("hasten a connection: %w", err)
	}
	return nil
}

// urgent says whether writes wait for what a service's connection carries.
func urgent(service string) bool { return service == serviceRaft || service == serviceCall }
