package direct

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
)

func TestWriterWritesWhatItIsGiven(t *testing.T) {
	for _, tc := range []struct {
		name   string
		dir    string
		direct bool
	}{
		{"a disk", t.TempDir(), true},
		{"a filesystem without blocks", "/dev/shm", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := os.CreateTemp(tc.dir, "direct-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(f.Name())
			defer f.Close()
			w := NewWriter(f)
			defer w.Close()
			random := rand.New(rand.NewChaCha8([32]byte{1}))
			want := Buffer(300_000)
			for i := range want {
				want[i] = byte(random.Uint32())
			}
			for at := 0; at < len(want); {
				n := min(1+random.IntN(40_000), len(want)-at)
				if random.IntN(2) == 0 {
					n = min((at+n+Block-1)/Block*Block, len(want)) - at // ends at a block's end, so that the next begins there
				}
				if m, err := w.WriteAt(want[at:at+n], int64(at)); err != nil || m != n {
					t.Fatalf("%d of %d bytes at %d: %v", m, n, at, err)
				}
				at += n
			}
			got, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, which differ: %v", len(got), err)
			}
			if tc.direct && w.direct == nil {
				t.Error("nothing was written directly")
			}
		})
	}
}

func TestOnlyWhatIsAlignedIsWrittenDirectly(t *testing.T) {
	b := Buffer(4 * Block)
	w := &Writer{direct: os.Stdin} // of which nothing is asked
	for _, tc := range []struct {
		name string
		p    []byte
		at   int64
		want int
	}{
		{"whole blocks", b, Block, 4 * Block},
		{"the beginning of what ends within a block", b[:3*Block+1], 0, 3 * Block},
		{"less than a block", b[:Block-1], 0, 0},
		{"an offset within a block", b, 512, 0},
		{"memory within a block", b[512:], 0, 0},
	} {
		if got := w.aligned(tc.p, tc.at); got != tc.want {
			t.Errorf("%s: %d bytes, not %d", tc.name, got, tc.want)
		}
	}
}
