package enginetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

func testConcurrency(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	other := b.fixture.Reopen(t)
	t.Run("one volume made by many at once is made once", func(t *testing.T) {
		at(t, 8, func(i int) error {
			return []engine.Engine{b.engine, other}[i%2].Clone(ctx, engine.Volume{ID: "one", Bytes: imageBytes}, engine.From{Image: golden})
		})
		wantBytes(t, "the volume", b.content(t, "one"), goldenContent())
	})
	t.Run("attached by many at once it has one device", func(t *testing.T) {
		devices := make([]string, 8)
		at(t, len(devices), func(i int) (err error) {
			devices[i], err = []engine.Engine{b.engine, other}[i%2].Attach(ctx, "one", engine.AttachOptions{})
			return err
		})
		for _, d := range devices {
			if d != devices[0] {
				t.Fatalf("got several devices: %v", devices)
			}
		}
		at(t, 4, func(i int) error { return []engine.Engine{b.engine, other}[i%2].Detach(ctx, "one") })
	})
	t.Run("looked at while it comes and goes, a volume is whole or not there", func(t *testing.T) {
		gone := make(chan struct{})
		at(t, 2, func(i int) error {
			if i == 0 {
				defer close(gone)
				return b.comeAndGo(50)
			}
			return b.look(gone)
		})
	})
	t.Run("many volumes at once do not disturb each other", func(t *testing.T) {
		at(t, 20, func(i int) error { return b.life(ctx, fmt.Sprintf("many-%d", i), byte(i)) })
	})
	if left := b.fixture.Devices(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// comeAndGo makes a volume and deletes it, n times.
func (b *bench) comeAndGo(n int) error {
	for range n {
		err := b.engine.Create(context.Background(), engine.Volume{ID: "mayfly", Bytes: unit})
		if err == nil {
			err = b.engine.Delete(context.Background(), "mayfly")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// look looks at the volume of comeAndGo until it is gone for good.
func (b *bench) look(gone <-chan struct{}) error {
	for {
		info, err := b.engine.Stat(context.Background(), "mayfly")
		if err == nil && info.Bytes != unit {
			return fmt.Errorf("it has %d bytes", info.Bytes)
		}
		if err != nil && !backingimage.Is(err, backingimage.NotFound) {
			return err
		}
		select {
		case <-gone:
			return nil
		default:
		}
	}
}

// at calls f many times at once.
func at(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// life takes a volume through everything and back.
func (b *bench) life(ctx context.Context, id string, seed byte) error {
	err := b.engine.Clone(ctx, engine.Volume{ID: id, Bytes: imageBytes}, engine.From{Image: golden})
	if err != nil {
		return err
	}
	device, err := b.engine.Attach(ctx, id, engine.AttachOptions{})
	if err != nil {
		return err
	}
	if err := writeAndCheck(device, pattern(seed, unit)); err != nil {
		return err
	}
	if err := b.engine.Resize(ctx, id, 2*imageBytes); err != nil {
		return err
	}
	if err := b.engine.Detach(ctx, id); err != nil {
		return err
	}
	return b.engine.Delete(ctx, id)
}

func writeAndCheck(device string, p []byte) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(p, unit); err != nil {
		return err
	}
	got := make([]byte, len(p))
	if _, err := f.ReadAt(got, unit); err != nil {
		return err
	}
	if string(got) != string(p) {
		return errors.New("the device does not hold what was written to it")
	}
	return f.Sync()
}

// testRestart looks at each step's result through an engine that did not make it.
func testRestart(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	for _, id := range []string{"cloned", "created"} {
		b.fixture.Litter(t, id)
	}
	b.clone(t, "cloned", imageBytes)
	b.create(t, "created", unit)
	device := b.attach(t, "cloned", engine.AttachOptions{})
	writeDevice(t, device, pattern(9, 4096), 0)

	b.engine = b.fixture.Reopen(t)
	b.clone(t, "cloned", imageBytes)
	b.create(t, "created", unit)
	if again := b.attach(t, "cloned", engine.AttachOptions{}); again != device {
		t.Errorf("got %s, want %s", again, device)
	}
	wantKind(t, ok, b.engine.Resize(ctx, "cloned", 2*imageBytes))
	want := append(goldenContent(), zeros(imageBytes)...)
	copy(want, pattern(9, 4096))
	wantBytes(t, "the device", readDevice(t, device), want)

	b.engine = b.fixture.Reopen(t)
	wantKind(t, ok, b.engine.Detach(ctx, "cloned"))
	wantBytes(t, "the volume", b.content(t, "cloned"), want)
	b.fixture.Litter(t, "litter")
	for _, id := range []string{"cloned", "created", "litter"} {
		wantKind(t, ok, b.engine.Delete(ctx, id))
	}
	list, err := b.engine.List(ctx)
	wantKind(t, ok, err)
	if len(list) != 0 || len(b.fixture.Devices(t)) != 0 {
		t.Errorf("left behind: volumes %v, devices %v", list, b.fixture.Devices(t))
	}
}

// Variables that name the disk, and Fixture.Room, to the child process of testKill.
const (
	placeVariable = "PLINTH_ENGINETEST_PLACE"
	roomVariable  = "PLINTH_ENGINETEST_ROOM"
)

// exported is the name of the file that the child exports to.
const exported = "exported"

// Main is for TestMain. In the child process that testKill starts it works on the disk until it is killed; otherwise it
// runs the tests. open returns an engine on the disk of Fixture.Place.
func Main(m *testing.M, open func(place string) engine.Engine) int {
	place := os.Getenv(placeVariable)
	if place == "" {
		return m.Run()
	}
	fmt.Println("begin")
	for {
		if err := step(context.Background(), open(place), os.Getenv(roomVariable)); err != nil {
			fmt.Println(err)
			return 1
		}
	}
}

// step does one random thing to one of a few volumes. What the volume's state forbids is no error.
func step(ctx context.Context, e engine.Engine, room string) error {
	id := fmt.Sprintf("v%d", rand.IntN(4))
	var err error
	switch rand.IntN(12) {
	case 0, 1:
		err = e.Clone(ctx, engine.Volume{ID: id, Bytes: imageBytes}, engine.From{Image: golden})
	case 2:
		err = e.Create(ctx, engine.Volume{ID: id, Bytes: imageBytes})
	case 3:
		err = e.Resize(ctx, id, imageBytes+int64(rand.IntN(8))*unit)
	case 4, 5:
		_, err = e.Attach(ctx, id, engine.AttachOptions{})
	case 6:
		err = e.Detach(ctx, id)
	case 7:
		err = e.Delete(ctx, id)
	case 8:
		err = e.Export(ctx, id, filepath.Join(room, exported))
	case 9:
		err = e.Snapshot(ctx, engine.Snapshot{ID: fmt.Sprintf("s%d", rand.IntN(4)), Volume: id})
	case 10:
		err = e.DeleteSnapshot(ctx, fmt.Sprintf("s%d", rand.IntN(4)))
	case 11:
		err = e.Clone(ctx, engine.Volume{ID: id, Bytes: 2 * imageBytes}, engine.From{Snapshot: fmt.Sprintf("s%d", rand.IntN(4))})
	}
	if backingimage.Is(err, backingimage.NotFound) || backingimage.Is(err, backingimage.Conflict) || backingimage.Is(err, backingimage.OutOfRange) {
		return nil
	}
	return err
}

// testKill kills a process at work again and again, and looks at what it left.
func testKill(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	for range 20 {
		killAtWork(t, b.fixture)
		b.checkExported(t)
		e := b.fixture.Reopen(t)
		list, err := e.List(ctx)
		wantKind(t, ok, err)
		for _, info := range list {
			b.checkLeft(t, e, info)
		}
		snapshots, err := e.ListSnapshots(ctx)
		wantKind(t, ok, err)
		for _, info := range snapshots {
			checkWhole(t, "snapshot "+info.ID, b.open(t, engine.From{Snapshot: info.ID}), info.Bytes)
		}
	}
	for i := range 4 {
		wantKind(t, ok, b.engine.Delete(ctx, fmt.Sprintf("v%d", i)))
		wantKind(t, ok, b.engine.DeleteSnapshot(ctx, fmt.Sprintf("s%d", i)))
	}
	list, err := b.engine.List(ctx)
	wantKind(t, ok, err)
	snapshots, err := b.engine.ListSnapshots(ctx)
	wantKind(t, ok, err)
	if len(list) != 0 || len(snapshots) != 0 || len(b.fixture.Devices(t)) != 0 {
		t.Errorf("left behind: volumes %v, snapshots %v, devices %v", list, snapshots, b.fixture.Devices(t))
	}
}

// killAtWork starts the child and kills it a little later.
func killAtWork(t *testing.T, f Fixture) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), placeVariable+"="+f.Place, roomVariable+"="+f.Room)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Scan() // "begin"
	time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond)
	child.Process.Kill()
	for said.Scan() {
		if line := said.Text(); !strings.HasPrefix(line, "begin") {
			t.Errorf("before it was killed: %s", line)
		}
	}
	child.Wait() // always "killed"
}

// checkExported checks that what a kill left of an export is a whole volume, or nothing.
func (b *bench) checkExported(t *testing.T) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(b.fixture.Room, exported))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	wantKind(t, ok, err)
	checkWhole(t, "the export", content, int64(len(content)))
}

// checkWhole checks that a content is that of a whole volume of testKill.
func checkWhole(t *testing.T, what string, content []byte, bytes int64) {
	t.Helper()
	if len(content) < imageBytes || int64(len(content)) != bytes {
		t.Fatalf("%s has %d bytes, not %d", what, len(content), bytes)
	}
	want := zeros(len(content))
	if content[0] != 0 {
		copy(want, goldenContent())
	}
	wantBytes(t, what, content, want)
}

// checkLeft checks that a volume which a kill left is a whole one.
func (b *bench) checkLeft(t *testing.T, e engine.Engine, info engine.Info) {
	t.Helper()
	device, err := e.Attach(context.Background(), info.ID, engine.AttachOptions{})
	wantKind(t, ok, err)
	content := readDevice(t, device)
	checkWhole(t, "volume "+info.ID, content, info.Bytes)
	if made := info.From; (made.Image == golden) != (content[0] != 0) && made.Snapshot == "" {
		t.Fatalf("volume %s, made from %+v, begins with byte %#x", info.ID, made, content[0])
	}
	if rand.IntN(2) == 0 {
		wantKind(t, ok, e.Detach(context.Background(), info.ID))
	}
}
