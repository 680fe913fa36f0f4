package parallel_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/parallel"
)

func TestAPanicIsTheGroupsErrorAndEndsTheOthers(t *testing.T) {
	group, ctx := parallel.WithContext(context.Background())
	group.Go(func() error {
		<-ctx.Done()
		return ctx.Err()
	})
	group.Go(func() error {
		var table []byte
		table[len(table)] = 1
		return nil
	})
	err := group.Wait()
	if !backingimage.Is(err, backingimage.Internal) || backingimage.Terminal(err) || !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("got %v", err)
	}
}

func TestTheFirstErrorIsReturned(t *testing.T) {
	want := errors.New("no")
	group, ctx := parallel.WithContext(context.Background())
	group.Go(func() error { return want })
	group.Go(func() error {
		<-ctx.Done()
		return nil
	})
	if err := group.Wait(); err != want {
		t.Errorf("got %v", err)
	}
}
