package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// writeToken names one write that a leader has accepted: HISTORY.TERM.INDEX.PLACE, the history in hexadecimal, the
// rest in decimal.
type writeToken struct {
	history [16]byte
	at      core.Position
	place   uint32 // in the entry
}

func (t writeToken) String() string {
	return fmt.Sprintf("%x.%d.%d.%d", t.history, t.at.Term, t.at.Index, t.place)
}

var errWriteToken = errors.New("not the token of a write")

// parseWriteToken is the inverse of String and takes nothing else.
func parseWriteToken(s string) (t writeToken, err error) {
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return t, errWriteToken
	}
	var numbers [3]uint64
	for i, bits := range []int{64, 64, 32} {
		if numbers[i], err = strconv.ParseUint(parts[i+1], 10, bits); err != nil {
			return t, errWriteToken
		}
	}
	history, err := hex.DecodeString(parts[0])
	if err != nil || len(history) != len(t.history) {
		return t, errWriteToken
	}
	t.history = [16]byte(history)
	t.at = core.Position{Term: numbers[0], Index: numbers[1]}
	t.place = uint32(numbers[2])
	if t.at.Term == 0 || t.at.Index == 0 || t.String() != s {
		return t, errWriteToken
	}
	return t, nil
}
