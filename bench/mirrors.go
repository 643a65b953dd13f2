package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// mirrorPeer is a peer that keeps one directory like another: what new files are measured beside. Each has the shortest
// delay that it can be given.
type mirrorPeer struct {
	peer       // its name names directories: csync2 has no quotes in its configuration
	events int // one at a time, that one run measures
	start  func(ctx context.Context, s *servers, from, to string) error
}

func mirrors() []mirrorPeer {
	return []mirrorPeer{
		{peer{"lsyncd+rsync", []string{"lsyncd", "rsync"}, "lsyncd rsync"}, 50, startLsyncd},
		{peer{"lsyncd+csync2", []string{"lsyncd", "csync2"}, "lsyncd csync2"}, 50, startCsync2},
		{peer{"syncthing", []string{"syncthing"}, "syncthing"}, 10, startSyncthing},
	}
}

// besideMirrors runs each on a pair of directories that are in step, and empty but for one file.
func besideMirrors(ctx context.Context, g ground, o *outcome, measure func(ctx context.Context, m mirrorPeer, from, to string) error) {
	for _, m := range mirrors() {
		o.beside(ctx, m.peer, func(ctx context.Context) (err error) {
			dir := filepath.Join(g.dir, m.name)
			from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
			if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(to, 0o755)); err != nil {
				return err
			}
			s := newServers(dir)
			defer func() { err = errors.Join(err, s.stop()) }()
			if err := m.start(ctx, s, from, to); err != nil {
				return err
			}
			if err := watched(ctx, s, from, to); err != nil {
				return err
			}
			return measure(ctx, m, from, to)
		})
	}
}

// watched waits until a change arrives: one that was made before a peer watches may not.
func watched(ctx context.Context, s *servers, from, to string) error {
	changed := time.Time{}
	return s.await(ctx, func() error {
		if time.Since(changed) > 3*time.Second {
			changed = time.Now()
			if err := os.WriteFile(filepath.Join(from, "first"), []byte(changed.String()), 0o644); err != nil {
				return farm.Final(err)
			}
		}
		_, err := os.Stat(filepath.Join(to, "first"))
		return err
	})
}

// startLsyncd has lsyncd call rsync, which writes to a daemon: faster, without delays of TCP, than to a directory.
func startLsyncd(ctx context.Context, s *servers, from, to string) error {
	url, err := serveRsync(ctx, s, to)
	if err != nil {
		return err
	}
	return runLsyncd(s, fmt.Sprintf("default.rsync, target=%q, rsync={archive=true, _extra={%q}}", url, "--sockopts="+noDelay), from)
}

// runLsyncd starts it without delay; what is Lua, of one sync.
func runLsyncd(s *servers, what, from string, env ...string) error {
	file := filepath.Join(s.dir, "lsyncd.lua")
	config := fmt.Sprintf("settings{nodaemon=true}\nsync{%s, source=%q, delay=0}\n", what, from)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	return s.start(env, "lsyncd", file)
}

// startCsync2 has lsyncd tell csync2 which paths have changed. The two hosts are two addresses of loopback.
func startCsync2(ctx context.Context, s *servers, from, to string) error {
	const sender, receiver = "127.0.0.1", "127.0.0.2"
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	key := filepath.Join(s.dir, "key")
	config := fmt.Sprintf("nossl * *;\ngroup bench { host %s %s; key %s; include %%tree%%; auto younger; }\nprefix tree { on %[1]s: %[4]s; on %[2]s: %[5]s; }\n",
		sender, receiver, key, from, to)
	if err := errors.Join(os.MkdirAll(filepath.Join(s.dir, "db"), 0o755), os.WriteFile(filepath.Join(s.dir, "csync2.cfg"), []byte(config), 0o644),
		os.WriteFile(key, []byte(strings.Repeat("k", 64)+"\n"), 0o600)); err != nil {
		return err
	}
	env := "CSYNC2_SYSTEM_DIR=" + s.dir
	call := func(host string) string {
		return fmt.Sprintf("csync2 -N %s -D '%s' -p %d", host, filepath.Join(s.dir, "db"), ports[0])
	}
	if err := s.start([]string{env}, "sh", "-c", "exec "+call(receiver)+" -ii"); err != nil {
		return err
	}
	if err := s.listening(ctx, fmt.Sprintf("%s:%d", receiver, ports[0])); err != nil {
		return err
	}
	script := fmt.Sprintf(`sed 's,^,%s,; s,/$,,' | xargs -d '\n' %s -c && %[2]s -u`, from, call(sender))
	action := fmt.Sprintf(`action=function(inlet)
	local list = inlet.getEvents()
	spawn(list, "/bin/sh", "<", table.concat(list.getPaths(), "\n"), "-c", %q)
end, maxProcesses=1`, script)
	return runLsyncd(s, action, from, env)
}

// startSyncthing runs two devices that know nobody else.
func startSyncthing(ctx context.Context, s *servers, from, to string) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	homes, ids := []string{filepath.Join(s.dir, "a"), filepath.Join(s.dir, "b")}, []string{"", ""}
	for i, home := range homes {
		generate := exec.CommandContext(ctx, "syncthing", "generate", "--home="+home, "--no-default-folder", "--skip-port-probing")
		if out, err := generate.CombinedOutput(); err != nil {
			return fmt.Errorf("syncthing generate: %w: %s", err, out)
		}
		id, err := exec.CommandContext(ctx, "syncthing", "serve", "--home="+home, "--device-id").Output()
		if err != nil {
			return fmt.Errorf("syncthing --device-id: %w", err)
		}
		ids[i] = strings.TrimSpace(string(id))
	}
	for i, tree := range []string{from, to} {
		marker := filepath.Join(tree, ".stfolder")
		config := filepath.Join(homes[i], "config.xml")
		if err := errors.Join(os.MkdirAll(marker, 0o755), os.WriteFile(config, []byte(syncthingConfig(tree, ids, ports, i)), 0o600)); err != nil {
			return err
		}
		if err := s.start([]string{"STNORESTART=1", "STNOUPGRADE=1"}, "syncthing", "serve", "--home="+homes[i], "--no-browser"); err != nil {
			return err
		}
	}
	return nil
}

// syncthingConfig is that of one of two devices: a delay of a second is the shortest, and nothing leaves this machine.
func syncthingConfig(tree string, ids []string, ports []int, self int) string {
	var devices, members strings.Builder
	for i, id := range ids {
		fmt.Fprintf(&devices, "<device id=%q compression=\"never\"><address>tcp://127.0.0.1:%d</address></device>\n", id, ports[i])
		fmt.Fprintf(&members, "<device id=%q></device>", id)
	}
	return fmt.Sprintf(`<configuration version="36">
<folder id="tree" path=%q type="sendreceive" rescanIntervalS="3600" fsWatcherEnabled="true" fsWatcherDelayS="1">%s</folder>
%s<gui enabled="false"></gui>
<options><listenAddress>tcp://127.0.0.1:%d</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>
<localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>
<reconnectionIntervalS>1</reconnectionIntervalS><urAccepted>-1</urAccepted><autoUpgradeIntervalH>0</autoUpgradeIntervalH>
<startBrowser>false</startBrowser><crashReportingEnabled>false</crashReportingEnabled><setLowPriority>false</setLowPriority>
<stunKeepaliveStartS>0</stunKeepaliveStartS></options>
</configuration>
`, tree, members.String(), devices.String(), ports[self])
}

// besideMirrorsEvents has each mirror make one new file at a time.
func besideMirrorsEvents(ctx context.Context, g ground, o *outcome) {
	besideMirrors(ctx, g, o, func(ctx context.Context, m mirrorPeer, from, to string) error {
		p50, p99, err := events(ctx, rand.New(rand.NewPCG(g.seed, 2)), m.events, []string{from}, []string{from, to})
		if err == nil {
			o.of(m.name, "p50 ms", p50)
			o.of(m.name, "p99 ms", p99)
		}
		return err
	})
}

// besideMirrorsBurst has each mirror follow many files.
func besideMirrorsBurst(ctx context.Context, g ground, o *outcome) {
	besideMirrors(ctx, g, o, func(ctx context.Context, m mirrorPeer, from, to string) error {
		files := func() *rand.Rand { return rand.New(rand.NewPCG(g.seed, 3)) }
		create, err := timed(func() error { return tree(from, burstFiles, burstDirs, 5<<10, files()) })
		if err != nil {
			return err
		}
		after, err := timed(func() error {
			return eachFile(burstFiles, burstDirs, 5<<10, files(), func(path string, content []byte) error {
				return arrival(ctx, filepath.Join(to, path), content)
			})
		})
		if err == nil {
			o.burst(m.name, create, after)
		}
		return err
	})
}
