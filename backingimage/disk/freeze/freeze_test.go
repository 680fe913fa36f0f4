package freeze_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/freeze"
	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

// Variables that make this program the child of a test: it freezes what is mounted from a device, and stays there.
const (
	deviceVariable = "PLINTH_FREEZETEST_DEVICE"
	markerVariable = "PLINTH_FREEZETEST_MARKER"
	limitVariable  = "PLINTH_FREEZETEST_LIMIT"
)

// bound is for what takes milliseconds.
const bound = 30 * time.Second

func TestMain(m *testing.M) {
	device := os.Getenv(deviceVariable)
	if device == "" {
		os.Exit(m.Run())
	}
	if d, err := time.ParseDuration(os.Getenv(limitVariable)); err == nil {
		freeze.SetLimit(d)
	}
	err := freeze.While(context.Background(), device, os.Getenv(markerVariable), func(context.Context) error {
		fmt.Println("frozen")
		select {}
	})
	fmt.Println(err)
	os.Exit(1)
}

// world is a mounted filesystem.
type world struct{ mount, device, marker string }

func newWorld(t *testing.T) world {
	t.Helper()
	mount := disktest.MustFilesystem(t, "ext4", 64<<20)
	m, mounted, err := mountinfo.At(mount)
	if err != nil || !mounted {
		t.Fatalf("%s is not mounted: %v", mount, err)
	}
	return world{mount: mount, device: m.Source, marker: filepath.Join(t.TempDir(), "frozen")}
}

// write writes a file in the filesystem, which takes for as long as it is frozen.
func (w world) write() <-chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(w.mount, "file"), []byte("data"), 0o600) }()
	return done
}

func within(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(bound):
		t.Fatalf("%s: still blocked", what)
	}
}

func blocked(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("a write to a frozen filesystem ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}

func TestWritersWaitWhileWorkIsDone(t *testing.T) {
	w := newWorld(t)
	var done <-chan error
	err := freeze.While(t.Context(), w.device, w.marker, func(context.Context) error {
		done = w.write()
		blocked(t, done)
		if _, err := os.Stat(w.marker); err != nil {
			t.Errorf("nothing says what is frozen: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "after the work", done)
	if _, err := os.Stat(w.marker); !os.IsNotExist(err) {
		t.Errorf("the marker is still there: %v", err)
	}
}

func TestFailedWorkThawsAndIsTheError(t *testing.T) {
	w := newWorld(t)
	failed := errors.New("failed")
	err := freeze.While(t.Context(), w.device, w.marker, func(context.Context) error { return failed })
	if !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	within(t, "after the failure", w.write())
}

func TestWorkOnAFilesystemThatWasThawedMeanwhileDoesNotCount(t *testing.T) {
	w := newWorld(t)
	err := freeze.While(t.Context(), w.device, w.marker, func(ctx context.Context) error {
		_, err := command.Run(ctx, "fsfreeze", "--unfreeze", w.mount)
		return err
	})
	if !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("got %v, want NotReady", err)
	}
}

func TestWithoutAFilesystemWorkIsJustDone(t *testing.T) {
	for _, device := range []string{"", "/dev/null"} {
		worked := false
		err := freeze.While(t.Context(), device, filepath.Join(t.TempDir(), "frozen"), func(context.Context) error { worked = true; return nil })
		if err != nil || !worked {
			t.Errorf("device %q: worked %t, %v", device, worked, err)
		}
	}
}

// TestNothingStaysFrozen is about processes that do not come back from their work.
func TestNothingStaysFrozen(t *testing.T) {
	for name, tc := range map[string]struct {
		limit string
		kill  bool
	}{
		"when the process is killed":        {limit: "600s", kill: true},
		"when it takes longer than allowed": {limit: "1s"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), deviceVariable+"="+w.device, markerVariable+"="+w.marker, limitVariable+"="+tc.limit)
			child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { child.Process.Kill(); child.Wait() })
			said := bufio.NewScanner(out)
			if !said.Scan() || said.Text() != "frozen" {
				t.Fatalf("the child said %q", said.Text())
			}
			done := w.write()
			blocked(t, done)
			if tc.kill {
				syscall.Kill(-child.Process.Pid, syscall.SIGKILL)
			}
			within(t, name, done)
		})
	}
}

func TestRecoverThawsWhatAMarkerSays(t *testing.T) {
	w := newWorld(t)
	if err := freeze.Mark(w.marker, []string{w.mount, "/nowhere", t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if _, err := command.Run(t.Context(), "fsfreeze", "--freeze", w.mount); err != nil {
		t.Fatal(err)
	}
	done := w.write()
	for range 2 { // the second finds nothing to do
		if err := freeze.Recover(t.Context(), w.marker); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "after Recover", done)
	if _, err := os.Stat(w.marker); !os.IsNotExist(err) {
		t.Errorf("the marker is still there: %v", err)
	}
}
