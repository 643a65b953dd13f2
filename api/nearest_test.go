package api

import "testing"

func TestNearest(t *testing.T) {
	words := []string{"listen", "data", "name", "api", "log_level", "advertise"}
	for in, want := range map[string]string{
		"listne": "listen", "LISTEN": "listen", "dta": "data", "datadir": "", "lis": "listen", "log-level": "log_level",
		"x": "", "": "", "log_levle": "log_level", "zebra": "", "nmae": "name", "advertize": "advertise",
	} {
		if got := Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"n4": "", "n33": "n3", "web": ""} {
		if got := Nearest(in, []string{"n1", "n2", "n3"}); got != want {
			t.Errorf("Nearest(%q) of n1, n2, n3 = %q, want %q", in, got, want)
		}
	}
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abd", 1}, {"ab", "ba", 1}, {"kitten", "sitting", 3}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}
