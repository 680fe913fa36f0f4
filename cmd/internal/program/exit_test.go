package program

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
)

func TestExitCodeOfEveryKindIsDocumented(t *testing.T) {
	documented := map[int]bool{}
	for _, e := range Meanings {
		documented[e.Code] = true
	}
	for k := backingimage.Internal; !strings.HasPrefix(k.String(), "Kind("); k++ {
		code := ExitCode(t.Context(), backingimage.Errorf(k, "x"))
		if code == exitOK || !documented[code] {
			t.Errorf("%s ends with exit code %d, which is not documented as a failure", k, code)
		}
		if k != backingimage.Internal && code == exitInternal {
			t.Errorf("%s ends with the exit code of Internal", k)
		}
		if named := backingimage.KindNamed(k.String()); named != k {
			t.Errorf("the status reason %s is read back as %s", k, named)
		}
	}
}

func TestExitCodeOfContexts(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w: terminated", errInterrupted))
	wrapped := fmt.Errorf("wait: %w", context.Canceled)
	if got := ExitCode(interrupted, wrapped); got != exitInterrupted {
		t.Errorf("after a signal the exit code is %d", got)
	}
	if got := ErrorText(interrupted, wrapped); got != "interrupted: terminated" {
		t.Errorf("after a signal the message is %q", got)
	}
	if got := ExitCode(t.Context(), fmt.Errorf("wait: %w", context.DeadlineExceeded)); got != exitNotReady {
		t.Errorf("after a timeout the exit code is %d", got)
	}
}

func TestExitCodesPageHasEveryCode(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range Meanings {
		if row := fmt.Sprintf("| %d | %s |", e.Code, e.Text); !strings.Contains(string(page), row) {
			t.Errorf("docs/reference/exit-codes.md lacks the row %q", row)
		}
	}
}
