package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestErrorsArePrintedOnceWithoutUsage(t *testing.T) {
	for _, args := range [][]string{{"imag"}, {"--frob"}, {"version", "x"}, {"image", "show"}, {"version", "-o", "xml"}, {"backup", "restore", "x"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), &stdout, &stderr, args...); code != 2 {
				t.Errorf("exit code %d", code)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout has %q", &stdout)
			}
			if s := stderr.String(); !strings.HasPrefix(s, "plinth: ") || strings.Count(s, "\n") != 1 {
				t.Errorf("stderr is not one line: %q", s)
			}
		})
	}
}
