package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"github.com/lockstep-sync/lockstep/api"
)

// setting is one of serve's settings, defined once for flag, environment and file.
type setting struct {
	key    string // in the file
	value  string // default
	toggle bool   // true or false
	usage  string
}

func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }
func (s setting) env() string  { return "LOCKSTEP_" + strings.ToUpper(s.key) }

func settings() []setting {
	return []setting{
		{key: "data", value: DefaultData, usage: "directory for the node's own state"},
		{key: "name", usage: "the node's name in the cluster (default: the one it has, or the host's)"},
		{key: "listen", value: ":7420", usage: "HOST:PORT for other nodes"},
		{key: "advertise", usage: "HOST:PORT under which other nodes reach this one (default: found out from --listen)"},
		{key: "api", value: "127.0.0.1:" + strconv.Itoa(api.DefaultPort), usage: "loopback HOST:PORT of the HTTP API; off: only the socket in the data directory"},
		{key: "join", usage: "token of the cluster to join; needed only once"},
		{key: "zone", usage: "what fails together with this server, for instance a rack or a room: voters are spread over zones"},
		{key: "replace", toggle: true, usage: "join under the name of a node that lost its data directory"},
		{key: "snapshot_rate", value: "0", usage: "most bytes a second that the node sends of whole states, with K, M or G; 0: no limit"},
		{key: "log", value: "text", usage: "form of the log on standard error: text or json"},
		{key: "log_level", value: "info", usage: "debug, info, warn or error"},
	}
}

// loadSettings returns each setting's value by key: flag, else environment, else file, else default.
func loadSettings(flags *pflag.FlagSet, getenv func(string) string) (map[string]string, error) {
	name, err := flags.GetString("config")
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = getenv("LOCKSTEP_CONFIG")
	}
	file := map[string]string{}
	if name != "" {
		if file, err = readConfig(name); err != nil {
			return nil, err
		}
	}
	values := map[string]string{}
	for _, s := range settings() {
		flag := flags.Lookup(s.flag())
		fromFile, inFile := file[s.key]
		switch env := getenv(s.env()); {
		case flag.Changed:
			values[s.key] = flag.Value.String()
		case env != "":
			values[s.key] = env
		case inFile:
			values[s.key] = fromFile
		default:
			values[s.key] = s.value
		}
	}
	return values, nil
}

// readConfig reads a TOML file of settings.
func readConfig(name string) (map[string]string, error) {
	bad := func(why, hint string) error {
		return &api.Error{Code: api.CodeUsage, Op: "read configuration", Subject: name, Why: why, Hint: hint}
	}
	var raw map[string]any
	if _, err := toml.DecodeFile(name, &raw); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return nil, bad(fmt.Sprintf("line %d: %s", syntax.Position.Line, syntax.Message), `write a line a setting: data = "/var/lib/lockstep"`)
		}
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, bad(err.Error(), "give a TOML file with --config or LOCKSTEP_CONFIG")
	}
	known := settings()
	values := make(map[string]string, len(raw))
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		i := slices.IndexFunc(known, func(s setting) bool { return s.key == key })
		if i < 0 {
			return nil, bad(fmt.Sprintf("unknown key %q", key), nearKey(key, known))
		}
		var err error
		if values[key], err = known[i].fromTOML(raw[key]); err != nil {
			return nil, bad(err.Error(), "for instance: "+known[i].example())
		}
	}
	return values, nil
}

func nearKey(key string, known []setting) string {
	keys := make([]string, len(known))
	for i, s := range known {
		keys[i] = s.key
	}
	if near := api.Nearest(strings.ReplaceAll(key, "-", "_"), keys); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "known keys: " + strings.Join(keys, ", ")
}

// example is a line of a file that fits.
func (s setting) example() string {
	if s.toggle {
		return s.key + " = true"
	}
	return s.key + ` = "` + s.value + `"`
}

func (s setting) fromTOML(v any) (string, error) {
	switch v := v.(type) {
	case bool:
		if s.toggle {
			return strconv.FormatBool(v), nil
		}
	case string:
		if !s.toggle {
			return v, nil
		}
	}
	if s.toggle {
		return "", fmt.Errorf("%s must be true or false", s.key)
	}
	return "", fmt.Errorf("%s must be a string, in quotes", s.key)
}

// serveConfig checks the values; the log goes to stderr.
func serveConfig(v map[string]string, stderr io.Writer) (ServeConfig, error) {
	bad := func(key, why, hint string) error {
		return &api.Error{Code: api.CodeUsage, Op: "setting", Subject: key, Why: why, Hint: hint}
	}
	cfg := ServeConfig{Name: v["name"], Listen: v["listen"], Advertise: v["advertise"], API: v["api"], Join: v["join"], Zone: v["zone"]}
	var err error
	if v["data"] == "" {
		return cfg, bad("data", "must not be empty", "")
	}
	if cfg.Data, err = filepath.Abs(v["data"]); err != nil {
		return cfg, bad("data", err.Error(), "write an absolute path")
	}
	known := hasIdentity(cfg.Data)
	if cfg.Name == "" && !known {
		if cfg.Name, err = os.Hostname(); err != nil {
			return cfg, bad("name", "this host has none: "+err.Error(), "give one with --name")
		}
		cfg.Name, _, _ = strings.Cut(cfg.Name, ".")
	}
	if !ValidName(cfg.Name) && (cfg.Name != "" || !known) {
		return cfg, bad("name", fmt.Sprintf("%q is not a name", cfg.Name), "use 1 to 63 letters, digits, '-', '_' and '.', beginning with a letter or digit")
	}
	if cfg.Zone != "" && !ValidName(cfg.Zone) {
		return cfg, bad("zone", fmt.Sprintf("%q is not a name", cfg.Zone), "use 1 to 63 letters, digits, '-', '_' and '.', beginning with a letter or digit")
	}
	for _, key := range []string{"listen", "advertise"} {
		if why := checkAddress(v[key]); v[key] != "" && why != "" {
			return cfg, bad(key, fmt.Sprintf("%q: %s", v[key], why), "write HOST:PORT, for instance 10.0.0.5:7420")
		}
	}
	if cfg.Listen == "" {
		return cfg, bad("listen", "must not be empty", "")
	}
	if cfg.API == "off" {
		cfg.API = ""
	}
	if v["replace"] != "" {
		if cfg.Replace, err = strconv.ParseBool(v["replace"]); err != nil {
			return cfg, bad("replace", fmt.Sprintf("%q is not true or false", v["replace"]), "write true or false, or leave it out")
		}
	}
	if cfg.SnapshotRate, err = parseRate(v["snapshot_rate"]); err != nil {
		return cfg, bad("snapshot_rate", err.Error(), "write a number of bytes, for instance 50M, or 0")
	}
	cfg.Log, err = newLog(v["log"], v["log_level"], stderr)
	return cfg, err
}

// parseRate reads a number of bytes with an optional K, M or G (powers of 1024).
func parseRate(s string) (uint64, error) {
	digits := strings.TrimRight(s, "KMG")
	shift := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}
	n, err := strconv.ParseUint(digits, 10, 32)
	by, ok := shift[s[len(digits):]]
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is not a rate", s)
	}
	if rate := n << by; rate == 0 || rate >= leastRate {
		return rate, nil
	}
	return 0, fmt.Errorf("%s is too slow for a state ever to arrive: at least %dK", s, leastRate>>10)
}

// leastRate is the lowest limit of bytes a second for states. A group that is written to moves on while one is sent.
const leastRate = 16 << 10

// hasIdentity tells whether a data directory is a node's already: then it knows the node's name, which need not be
// the host's.
func hasIdentity(data string) bool {
	_, err := os.Stat(filepath.Join(data, "identity", "cert.pem"))
	return err == nil
}

// ValidName tells whether s may name a node.
func ValidName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("-_.", rune(c))) {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

func checkAddress(s string) (why string) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "not HOST:PORT"
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "the port is not a number up to 65535"
	}
	return ""
}

func newLog(form, level string, w io.Writer) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[level]
	if !ok {
		return nil, &api.Error{Code: api.CodeUsage, Op: "setting", Subject: "log_level", Why: fmt.Sprintf("%q is not a level", level), Hint: "use debug, info, warn or error"}
	}
	opts.Level = l
	switch form {
	case "text":
		return slog.New(slog.NewTextHandler(w, &opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &opts)), nil
	}
	return nil, &api.Error{Code: api.CodeUsage, Op: "setting", Subject: "log", Why: fmt.Sprintf("%q is not a form", form), Hint: "use text or json"}
}
