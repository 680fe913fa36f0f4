package transfer

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"k8s.io/utils/clock"
)

// A reader that keeps up is given what is in memory; one that does not holds nobody up for long, and gets the same bytes.
func TestReadersOfAnUpload(t *testing.T) {
	content := make([]byte, 3*pieceCount*pieceBytes+4321)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(content)
	clear(content[5*pieceBytes+100 : 6*pieceBytes])
	for _, tc := range []struct {
		name string
		read func(r io.Reader, uploaded <-chan struct{}) ([]byte, error)
	}{
		{"one that keeps up", func(r io.Reader, _ <-chan struct{}) ([]byte, error) { return io.ReadAll(r) }},
		{"one that reads little at a time", func(r io.Reader, _ <-chan struct{}) ([]byte, error) { return io.ReadAll(iotest.HalfReader(r)) }},
		{"one that sleeps until all has come", func(r io.Reader, uploaded <-chan struct{}) ([]byte, error) {
			one := make([]byte, 1)
			if _, err := io.ReadFull(r, one); err != nil {
				return nil, err
			}
			<-uploaded
			rest, err := io.ReadAll(r)
			return append(one, rest...), err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := NewUploads(time.Hour, 0, clock.RealClock{})
			dir := stagedUpload(t)
			_, in := mustUpload(t, u, dir, int64(len(content)))
			s, err := u.Source("image", "uid", dir)
			must(t, err)
			body, err := s.Open(t.Context(), 0, "")
			must(t, err)
			defer body.Close()
			uploaded, read := make(chan struct{}), make(chan []byte)
			go func() {
				got, err := tc.read(body, uploaded)
				if err != nil {
					t.Error(err)
				}
				read <- got
			}()
			at := 0
			for _, end := range []int{100_001, 20*pieceBytes + 1, len(content)} {
				if n, err := in.WriteChunk(t.Context(), int64(at), bytes.NewReader(content[at:end])); err != nil || n != int64(end-at) {
					t.Fatalf("%d, %v", n, err)
				}
				at = end
			}
			close(uploaded)
			if got := <-read; !bytes.Equal(got, content) {
				t.Errorf("%d bytes were read, and they differ", len(got))
			}
		})
	}
}
