package csi

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"plinth.dev/plinth/backingimage"
)

func TestEveryErrorGetsACode(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"no error":                              {nil, codes.OK},
		"a Kind":                                {backingimage.Errorf(backingimage.Full, "x"), codes.ResourceExhausted},
		"a wrapped Kind":                        {fmt.Errorf("create: %w", backingimage.Errorf(backingimage.Conflict, "x")), codes.AlreadyExists},
		"a cancelled call":                      {fmt.Errorf("x: %w", context.Canceled), codes.Canceled},
		"a call out of time":                    {fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		"a Kind chosen when the context ended":  {backingimage.Errorf(backingimage.NotReady, "43 %%: %w", context.DeadlineExceeded), codes.Unavailable},
		"a status that the RPC chose":           {fmt.Errorf("x: %w", status.Error(codes.PermissionDenied, "x")), codes.PermissionDenied},
		"an error that nobody classified":       {errors.New("x"), codes.Internal},
		"a context that ended, called Internal": {backingimage.Errorf(backingimage.Internal, "x: %w", context.Canceled), codes.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			got := statusOf(c.err)
			if status.Code(got) != c.want {
				t.Errorf("code %s, want %s", status.Code(got), c.want)
			}
			if c.err != nil && status.Convert(got).Message() == "" {
				t.Error("no message")
			}
		})
	}
}

func TestEveryKindHasARow(t *testing.T) {
	for kind := backingimage.Internal; kind <= backingimage.Corrupt; kind++ {
		if _, ok := codeOf[kind]; !ok {
			t.Errorf("Kind %s has no code", kind)
		}
	}
	if len(codeOf) != int(backingimage.Corrupt)+1 {
		t.Errorf("%d rows for %d Kinds", len(codeOf), backingimage.Corrupt+1)
	}
}
