package farm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Network is a switch between network namespaces, one a node, in which single directions can be cut. It needs root
// and the command ip. Nothing of it is visible outside its own namespaces.
type Network struct {
	prefix string
	size   int
}

// NewNetwork makes a switch with size ports. The error says what is missing.
func NewNetwork(size int) (*Network, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("farm: network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("farm: network namespaces need the command ip (iproute2): %w", err)
	}
	n := &Network{prefix: fmt.Sprintf("lockstep-%d-", os.Getpid()), size: size}
	if err := n.build(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Network) space(i int) string { return fmt.Sprintf("%sn%d", n.prefix, i) }

func (n *Network) hub() string { return n.prefix + "hub" }

// Address of the node with number i, from 1.
func (n *Network) Address(i int) string { return fmt.Sprintf("10.77.0.%d", i) }

// Under is the command under which a process runs at port i.
func (n *Network) Under(i int) []string { return []string{"ip", "netns", "exec", n.space(i)} }

func mac(i int) string { return fmt.Sprintf("02:00:00:00:00:%02x", i) }

// nowhere is the hardware address of nobody: what is sent to it is gone, and no error tells.
const nowhere = "02:00:00:00:ff:ff"

func (n *Network) build() error {
	lines := []string{
		"netns add " + n.hub(),
		"-n " + n.hub() + " link add br0 type bridge",
		"-n " + n.hub() + " link set br0 up",
	}
	for i := 1; i <= n.size; i++ {
		lines = append(lines,
			"netns add "+n.space(i),
			fmt.Sprintf("link add eth0 netns %s address %s type veth peer name v%d netns %s", n.space(i), mac(i), i, n.hub()),
			fmt.Sprintf("-n %s link set v%d master br0 up", n.hub(), i),
			fmt.Sprintf("-n %s addr add %s/24 dev eth0", n.space(i), n.Address(i)),
			"-n "+n.space(i)+" link set eth0 up",
			"-n "+n.space(i)+" link set lo up",
		)
	}
	for _, line := range lines {
		if err := ip(line); err != nil {
			return err
		}
	}
	return n.Heal()
}

func ip(line string) error {
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		return fmt.Errorf("farm: ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (n *Network) route(from, to int, hardware string) error {
	return ip(fmt.Sprintf("-n %s neigh replace %s lladdr %s dev eth0 nud permanent", n.space(from), n.Address(to), hardware))
}

// Cut loses everything that is sent from one node to another, silently; the other direction stays as it is.
func (n *Network) Cut(from, to int) error { return n.route(from, to, nowhere) }

// Limit has a node send at most megabits a second, through a queue like that of a network card (three bands, by the type of
// service), which holds what is sent within queue; beyond that it is lost. congestion names the control of its connections;
// empty: the machine's. It needs the command tc.
func (n *Network) Limit(node, megabits int, queue time.Duration, congestion string) error {
	tbf := fmt.Sprintf("qdisc replace dev eth0 root handle 1: tbf rate %dmbit burst 32kb latency %dms", megabits, queue.Milliseconds())
	if err := n.within(node, "tc", tbf); err != nil {
		return err
	}
	if err := n.within(node, "tc", "qdisc replace dev eth0 parent 1:1 handle 10: pfifo_fast"); err != nil {
		return err
	}
	if congestion == "" {
		return nil
	}
	return n.within(node, "ip", "route change 10.77.0.0/24 dev eth0 congctl "+congestion)
}

// within runs a command in a node's namespace.
func (n *Network) within(node int, command, line string) error {
	args := append([]string{"netns", "exec", n.space(node), command}, strings.Fields(line)...)
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("farm: %s %s: %w: %s", command, line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Heal lets everything through again.
func (n *Network) Heal() error {
	var errs []error
	for from := 1; from <= n.size; from++ {
		for to := 1; to <= n.size; to++ {
			if from != to {
				errs = append(errs, n.route(from, to, mac(to)))
			}
		}
	}
	return errors.Join(errs...)
}

// Close removes the namespaces; processes in them must have ended.
func (n *Network) Close() error {
	var errs []error
	for i := 1; i <= n.size; i++ {
		errs = append(errs, n.remove(n.space(i)))
	}
	return errors.Join(append(errs, n.remove(n.hub()))...)
}

func (n *Network) remove(space string) error {
	if _, err := os.Stat("/var/run/netns/" + space); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return ip("netns del " + space)
}
