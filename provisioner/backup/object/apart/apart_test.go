package apart_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/apart"
)

// Variables that make the test's binary the program, and one that starts the program and waits.
const (
	programVariable = "PLINTH_APART_PROGRAM"
	parentVariable  = "PLINTH_APART_PARENT" // the directory
)

const secret = "s3cr3t-of-the-bucket"

// within is how long what has to happen may take on a busy machine.
const within = 2 * time.Minute

func TestMain(m *testing.M) {
	switch dir := os.Getenv(parentVariable); {
	case os.Getenv(programVariable) != "":
		if err := apart.Serve(context.Background(), map[string]object.Opener{"gs": openDirectory, "azblob": refuse}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	case dir != "":
		startAndWait(dir)
		return
	}
	os.Setenv(programVariable, "yes") // of what is started from here on
	apart.Rest(time.Second)
	os.Exit(m.Run())
}

// openDirectory serves a directory.
func openDirectory(_ context.Context, l object.Location, o source.Options) (object.Bucket, error) {
	if o.Credential.Token.Reveal() != secret {
		return object.Bucket{}, errors.New("the secret did not arrive")
	}
	b, err := fileblob.OpenBucket("/"+l.Path, &fileblob.Options{Metadata: fileblob.MetadataDontWrite})
	return object.Bucket{Bucket: b, Classify: func(_ context.Context, err error) error {
		if gcerrors.Code(err) == gcerrors.NotFound {
			return backingimage.Errorf(backingimage.NotFound, "there is no such object")
		}
		return backingimage.Errorf(backingimage.Full, "no room for %w", err)
	}}, err
}

func refuse(context.Context, object.Location, source.Options) (object.Bucket, error) {
	return object.Bucket{}, backingimage.Errorf(backingimage.Precondition, "the key does not fit")
}

var findSelf = func() (string, error) { return os.Executable() }

func open(dir string) (*object.Store, error) {
	c, err := credential.Parse("test", map[string][]byte{credential.KeyToken: []byte(secret)})
	if err != nil {
		return nil, err
	}
	b, err := apart.Opener(findSelf)(context.Background(), object.Location{Scheme: "gs", Bucket: "b", Path: strings.TrimPrefix(dir, "/")}, source.Options{Credential: c})
	if err != nil {
		return nil, err
	}
	return object.New(b, "gs://b", object.Options{Pause: 10 * time.Millisecond, Attempts: 8}), nil
}

func mustOpen(tb testing.TB, dir string) *object.Store {
	tb.Helper()
	s, err := open(dir)
	must(tb, err)
	tb.Cleanup(func() { s.Close() })
	return s
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestABucketApartIsLikeAnyOther(t *testing.T) {
	t.Parallel()
	s, ctx := mustOpen(t, t.TempDir()), context.Background()
	contents := map[string][]byte{"empty": {}, "a/b": []byte("text"), "a/ü & ?=+%": []byte("odd name"), "large": bytes.Repeat([]byte("0123456789abcdef"), 1<<19)}
	for name, content := range contents {
		must(t, s.Put(ctx, name, []byte("older")))
		must(t, s.Put(ctx, name, content))
		if got, err := s.Get(ctx, name, 8<<20); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
		if first, size, err := s.Head(ctx, name, 3); err != nil || size != int64(len(content)) || !bytes.Equal(first, content[:min(3, len(content))]) {
			t.Errorf("%s: its head is %q of %d bytes, %v", name, first, size, err)
		}
		if at, err := s.Modified(ctx, name); err != nil || time.Since(at).Abs() > time.Hour {
			t.Errorf("%s: modified %s, %v", name, at, err)
		}
	}
	must(t, s.PutNew(ctx, "new", nil))
	if err := s.PutNew(ctx, "new", nil); !backingimage.Is(err, backingimage.Conflict) {
		t.Errorf("written over: %v", err)
	}
	if _, err := s.Get(ctx, "large", 1<<20); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("too large: %v", err)
	}
	for range 2 {
		must(t, s.Delete(ctx, "new"))
	}
	if _, err := s.Get(ctx, "new", 1); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := s.Modified(ctx, "new"); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("deleted: %v", err)
	}
	if err := s.Put(ctx, "a", nil); !backingimage.Is(err, backingimage.Full) || !strings.Contains(err.Error(), "no room for") {
		t.Errorf("an error of the bucket's own: %v", err)
	}
}

func TestListsComeInPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []string
	for i := range 2300 {
		want = append(want, fmt.Sprintf("many/%04d", i))
	}
	must(t, os.Mkdir(filepath.Join(dir, "many"), 0o700))
	for _, name := range append(want, "other") {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	var got []string
	must(t, mustOpen(t, dir).List(context.Background(), "many/", func(o object.Object) error {
		if o.Bytes != 1 || o.Modified.IsZero() {
			t.Errorf("listed %+v", o)
		}
		got = append(got, o.Name)
		return nil
	}))
	if !slices.Equal(got, want) {
		t.Errorf("listed %d, from %v", len(got), got[:min(len(got), 3)])
	}
}

func TestWhatCannotBeOpenedIsToldAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, c := range map[string]struct {
		scheme string
		find   func() (string, error)
		kind   backingimage.Kind
		says   string
	}{
		"refused":         {"azblob", findSelf, backingimage.Precondition, "the key does not fit"},
		"not linked":      {"s3", findSelf, backingimage.Unsupported, "no buckets of s3://"},
		"not installed":   {"gs", func() (string, error) { return "", backingimage.Errorf(backingimage.Unsupported, "install it") }, backingimage.Unsupported, "install it"},
		"not executable":  {"gs", func() (string, error) { return "/etc/passwd", nil }, backingimage.NotReady, "/etc/passwd"},
		"another program": {"gs", func() (string, error) { return "/bin/true", nil }, backingimage.NotReady, "ended"},
	} {
		_, err := apart.Opener(c.find)(ctx, object.Location{Scheme: c.scheme}, source.Options{})
		if !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// programs are the process IDs of children of a process.
func programs(tb testing.TB, parent int) []int {
	tb.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	must(tb, err)
	var found []int
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		after := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if after[0] != "Z" && after[1] == strconv.Itoa(parent) {
			id, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			must(tb, err)
			found = append(found, id)
		}
	}
	return found
}

func mustEventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(within); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("it did not come about that %s", what)
		}
	}
}

// mustOne opens a bucket whose program is the only one, and returns its process ID.
func mustOne(tb testing.TB, dir string) (*object.Store, int) {
	tb.Helper()
	mustEventually(tb, "no other program runs", func() bool { return len(programs(tb, os.Getpid())) == 0 })
	s := mustOpen(tb, dir)
	must(tb, s.Put(context.Background(), "first", []byte("x")))
	running := programs(tb, os.Getpid())
	if len(running) != 1 {
		tb.Fatalf("the programs %v run", running)
	}
	return s, running[0]
}

func TestNobodyElseSeesTheSecret(t *testing.T) {
	_, id := mustOne(t, t.TempDir())
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", id, file))
		if err != nil || len(text) == 0 || bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s is %q, %v", file, text, err)
		}
	}
}

func TestAProgramRunsWhileItIsNeeded(t *testing.T) {
	s, first := mustOne(t, t.TempDir())
	mustEventually(t, "the idle program ends", func() bool { return len(programs(t, os.Getpid())) == 0 })
	if got, err := s.Get(context.Background(), "first", 1); err != nil || string(got) != "x" {
		t.Errorf("after it ended: %q, %v", got, err)
	}
	if again := programs(t, os.Getpid()); len(again) != 1 || again[0] == first {
		t.Errorf("the programs %v run after %d", again, first)
	}
	must(t, s.Close())
	if left := programs(t, os.Getpid()); len(left) != 0 {
		t.Errorf("the programs %v run after the bucket was closed", left)
	}
	if _, err := s.Get(context.Background(), "first", 1); err == nil {
		t.Error("a closed bucket answers")
	}
}

func TestAProgramThatDiesIsStartedAgain(t *testing.T) {
	s, id := mustOne(t, t.TempDir())
	ctx, content := context.Background(), bytes.Repeat([]byte("x"), 1<<20)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for n := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d", n, i%5)
				if err := s.Put(ctx, name, content); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(ctx, name, 1<<20); err != nil || !bytes.Equal(got, content) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range 5 {
		must(t, unix.Kill(id, unix.SIGKILL))
		mustEventually(t, "another program runs", func() bool {
			running := programs(t, os.Getpid())
			return len(running) == 1 && running[0] != id && func() bool { id = running[0]; return true }()
		})
	}
	close(done)
	wg.Wait()
}

// startAndWait is a process that has a program and waits for its end.
func startAndWait(dir string) {
	os.Setenv(programVariable, "yes")
	os.Unsetenv(parentVariable)
	s, err := open(dir)
	if err == nil {
		err = s.Put(context.Background(), "first", nil)
	}
	fmt.Println(err)
	select {}
}

func TestAProgramEndsWithItsParent(t *testing.T) {
	for name, signal := range map[string]unix.Signal{"killed": unix.SIGKILL, "terminated": unix.SIGTERM} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, programVariable) }), parentVariable+"="+t.TempDir())
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		said := make([]byte, 100)
		n, err := out.Read(said)
		if err != nil || string(said[:n]) != "<nil>\n" {
			t.Errorf("%s: it said %s, %v", name, said[:n], err)
		}
		running := programs(t, cmd.Process.Pid)
		if len(running) != 1 {
			t.Errorf("%s: the programs %v run", name, running)
		}
		must(t, cmd.Process.Signal(signal))
		cmd.Wait()
		mustEventually(t, "the program ended", func() bool {
			return !slices.ContainsFunc(running, func(id int) bool { return unix.Kill(id, 0) == nil })
		})
	}
}
