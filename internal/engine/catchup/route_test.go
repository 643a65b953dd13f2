package catchup

import (
	"errors"
	"slices"
	"testing"
)

func TestCheckPath(t *testing.T) {
	deep := []uint64{11, 12, 13, 14, 15, 16, 17, 18, 19}
	for name, c := range map[string]struct {
		path []uint64
		want error
	}{
		"cut off":             {nil, nil},
		"a voter":             {[]uint64{1}, nil},
		"a relay":             {[]uint64{4, 1}, nil},
		"itself, far away":    {[]uint64{4, 7, 1}, ErrLoop},
		"itself":              {[]uint64{7}, ErrLoop},
		"as deep as may be":   {deep[:MaxHops], nil},
		"one deeper":          {deep[:MaxHops+1], ErrTooDeep},
		"a loop, and deep":    {append(slices.Clone(deep[:MaxHops]), 7), ErrLoop},
		"itself at the front": {append([]uint64{7}, deep[:2]...), ErrLoop},
	} {
		if got := CheckPath(7, c.path); !errors.Is(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestCandidates(t *testing.T) {
	for name, c := range map[string]struct {
		lost             uint64
		assigned, voters []uint64
		want             []uint64
	}{
		"voters only":             {0, nil, []uint64{1, 2}, []uint64{1, 2}},
		"assigned first":          {0, []uint64{5, 2}, []uint64{1, 2}, []uint64{5, 2, 1}},
		"not itself":              {0, []uint64{7, 5}, []uint64{1, 7}, []uint64{5, 1}},
		"lost: last":              {5, []uint64{5, 2}, []uint64{1, 2}, []uint64{2, 1, 5}},
		"lost, and no candidate":  {9, []uint64{5}, []uint64{1}, []uint64{5, 1}},
		"lost, and the only one":  {1, nil, []uint64{1}, []uint64{1}},
		"assigned twice":          {0, []uint64{5, 5}, []uint64{1, 1}, []uint64{5, 1}},
		"nobody":                  {3, nil, nil, nil},
		"the only voter: nothing": {0, nil, []uint64{7}, nil},
	} {
		assigned, voters := slices.Clone(c.assigned), slices.Clone(c.voters)
		if got := Candidates(7, c.lost, assigned, voters); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if !slices.Equal(assigned, c.assigned) || !slices.Equal(voters, c.voters) {
			t.Errorf("%s: what was passed is changed", name)
		}
	}
}
