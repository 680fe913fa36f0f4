package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
)

func TestExitCodeOfEveryKindIsDocumented(t *testing.T) {
	documented := map[int]bool{}
	for _, e := range exitMeanings {
		documented[e.code] = true
	}
	for k := backingimage.Internal; !strings.HasPrefix(k.String(), "Kind("); k++ {
		code := exitCode(t.Context(), backingimage.Errorf(k, "x"))
		if code == exitOK || !documented[code] {
			t.Errorf("%s ends with exit code %d, which is not documented as a failure", k, code)
		}
		if k != backingimage.Internal && code == exitInternal {
			t.Errorf("%s ends with the exit code of Internal", k)
		}
		if kindNamed(k.String()) != k {
			t.Errorf("the status reason %s is read back as %s", k, kindNamed(k.String()))
		}
	}
}

func TestExitCodeOfContexts(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w: terminated", errInterrupted))
	wrapped := fmt.Errorf("wait: %w", context.Canceled)
	if got := exitCode(interrupted, wrapped); got != exitInterrupted {
		t.Errorf("after a signal the exit code is %d", got)
	}
	if got := errorText(interrupted, wrapped); got != "interrupted: terminated" {
		t.Errorf("after a signal the message is %q", got)
	}
	if got := exitCode(t.Context(), fmt.Errorf("wait: %w", context.DeadlineExceeded)); got != exitNotReady {
		t.Errorf("after a timeout the exit code is %d", got)
	}
}

func TestExitCodesPageHasEveryCode(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exitMeanings {
		if row := fmt.Sprintf("| %d | %s |", e.code, e.meaning); !strings.Contains(string(page), row) {
			t.Errorf("docs/reference/exit-codes.md lacks the row %q", row)
		}
	}
}

func TestErrorsArePrintedOnceWithoutUsage(t *testing.T) {
	for _, args := range [][]string{{"imag"}, {"--frob"}, {"version", "x"}, {"image", "show"}, {"version", "-o", "xml"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), &stdout, &stderr, args...); code != exitUsage {
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
