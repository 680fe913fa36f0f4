package backup_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/servertest"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/s3"
	"plinth.dev/plinth/provisioner/engine"
)

const (
	accessKey = "AKIATESTACCESSKEY"
	secretKey = "sEcReTkEyOfTheTests"
	bucket    = "plinth-backups"
	key       = credential.Secret("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	otherKey  = credential.Secret("ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
)

// place is where a test keeps backups.
type place struct {
	url     string
	dir     string // with the objects as files, below it; "" where they are none
	address string // of the server, "" for a directory
	secret  func(address string) map[string]string
	openers object.Openers
	access  source.Options
	options object.Options
}

func directory(tb testing.TB) *place {
	tb.Helper()
	dir := tb.TempDir()
	return &place{url: "file://" + dir, dir: dir}
}

func s3Server(tb testing.TB) *place {
	tb.Helper()
	dir := tb.TempDir()
	must(tb, os.Mkdir(filepath.Join(dir, bucket), 0o700))
	p := &place{
		url: "s3://" + bucket + "/some/prefix", dir: filepath.Join(dir, bucket, "some", "prefix"), address: servertest.MustS3(tb, dir, accessKey, secretKey),
		openers: object.Openers{object.SchemeS3: s3.Open},
		secret: func(address string) map[string]string {
			return map[string]string{credential.KeyAccessKeyID: accessKey, credential.KeySecretKey: secretKey, credential.KeyEndpoint: "http://" + address, credential.KeyRegion: "eu-test-1"}
		},
	}
	p.through(tb, p.address)
	return p
}

// through makes the place be asked at another address.
func (p *place) through(tb testing.TB, address string) {
	tb.Helper()
	p.as(tb, p.secret(address))
	p.options = object.Options{Pause: 10 * time.Millisecond, Timeout: 20 * time.Second}
}

// as makes the place be asked with the content of another secret.
func (p *place) as(tb testing.TB, secret map[string]string) {
	tb.Helper()
	data := map[string][]byte{}
	for key, value := range secret {
		data[key] = []byte(value)
	}
	c, err := credential.Parse("test", data)
	must(tb, err)
	p.access = source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, StallTimeout: 10 * time.Second, Credential: c}
}

func (p *place) mustStore(tb testing.TB) *object.Store {
	tb.Helper()
	l, err := object.ParseLocation("url", p.url)
	must(tb, err)
	s, err := p.openers.Open(context.Background(), l, p.access, p.options)
	must(tb, err)
	tb.Cleanup(func() { s.Close() })
	return s
}

func (p *place) mustOpen(tb testing.TB, o backup.Options) *backup.Repository {
	tb.Helper()
	r, err := backup.OpenOrMake(context.Background(), p.mustStore(tb), o)
	must(tb, err)
	return r
}

// each runs a test in a directory and on a real S3 server, encrypted and not, and on those of the public clouds.
func each(t *testing.T, test func(t *testing.T, p *place, o backup.Options)) {
	for name, where := range map[string]func(testing.TB) *place{"directory": directory, "s3": s3Server} {
		for as, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
			t.Run(name+" "+as, func(t *testing.T) { t.Parallel(); test(t, where(t), o) })
		}
	}
	for name, where := range clouds() {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, where(t), backup.Options{Key: key}) })
	}
}

// content is random data with holes.
func content(seed byte, bytes int) []byte {
	p := servertest.Image(seed, bytes)
	if bytes > 3*backup.BlockBytes {
		clear(p[backup.BlockBytes : 2*backup.BlockBytes+1000])
	}
	return p
}

// mustSave makes a backup of a volume with a content that differs from what it began as in the extents.
func mustSave(tb testing.TB, r *backup.Repository, id string, m backup.Manifest, in backup.Input) *backup.Manifest {
	tb.Helper()
	saved, err := save(r, id, m, in)
	for deadline := time.Now().Add(within); backingimage.Is(err, backingimage.NotReady) && time.Now().Before(deadline); {
		saved, err = save(r, id, m, in) // where the grace time is short and the machine busy
	}
	must(tb, err)
	return saved
}

func save(r *backup.Repository, id string, m backup.Manifest, in backup.Input) (*backup.Manifest, error) {
	ctx := context.Background()
	s, err := r.Begin(ctx, false)
	if err != nil {
		return nil, err
	}
	if m.Content, err = s.Write(ctx, in, nil); err != nil {
		return nil, err
	}
	m.ID, m.Name = id, "of "+id
	if m.Volume == nil {
		m.Volume = &backup.Volume{Name: "web-1", UID: "u-1", Asked: "pvc-1"}
	}
	return &m, s.Finish(ctx, &m)
}

// whole is an input of all of a content.
func whole(p []byte) backup.Input {
	return backup.Input{File: bytes.NewReader(p), Bytes: int64(len(p)), Changed: []engine.Extent{{Offset: 0, Bytes: int64(len(p))}}}
}

// mustRestore restores a backup into a new file and compares it.
func mustRestore(tb testing.TB, r *backup.Repository, id string, want []byte) {
	tb.Helper()
	f := mustFile(tb, nil)
	m, err := r.Backup(context.Background(), id)
	must(tb, err)
	must(tb, r.Restore(context.Background(), m, f, backup.Restoring{WithImage: true}))
	mustHold(tb, f, want)
}

func mustFile(tb testing.TB, p []byte) *os.File {
	tb.Helper()
	f, err := os.OpenFile(filepath.Join(tb.TempDir(), "content"), os.O_RDWR|os.O_CREATE, 0o600)
	must(tb, err)
	tb.Cleanup(func() { f.Close() })
	_, err = f.Write(p)
	must(tb, err)
	return f
}

func mustHold(tb testing.TB, f *os.File, want []byte) {
	tb.Helper()
	got, err := os.ReadFile(f.Name())
	must(tb, err)
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		tb.Fatalf("the content differs from byte %d: %d bytes, want %d", at, len(got), len(want))
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestWhatIsBackedUpComesBack(t *testing.T) {
	each(t, func(t *testing.T, p *place, o backup.Options) {
		r := p.mustOpen(t, o)
		volume := content(1, 11<<20+512)
		saved := mustSave(t, r, "b-1", backup.Manifest{Labels: map[string]string{"tier": "gold"}}, whole(volume))
		if saved.Stats.ReadBytes != int64(len(volume)) || saved.Stats.NewBytes == 0 || saved.Stats.NewBytes > saved.Stats.ReadBytes-backup.BlockBytes/2 {
			t.Errorf("the statistics are %+v", saved.Stats)
		}
		other := p.mustOpen(t, o) // who has nothing but the place and the key
		mustRestore(t, other, "b-1", volume)
		list, err := other.List(context.Background())
		must(t, err)
		if len(list) != 1 || list[0].Err != nil || list[0].Manifest.Labels["tier"] != "gold" || list[0].Manifest.Volume.Asked != "pvc-1" {
			t.Errorf("listed %+v", list)
		}
		again := mustSave(t, r, "b-2", backup.Manifest{}, whole(volume))
		if again.Stats.NewBytes != 0 || again.Stats.SentBytes != 0 {
			t.Errorf("the same was sent again: %+v", again.Stats)
		}
		found, err := r.Verify(context.Background(), again, nil)
		if err != nil || found.Err() != nil || found.Blocks == 0 {
			t.Errorf("verified %+v, %v, %v", found, found.Err(), err)
		}
	})
}

func TestAVolumeHoldsWhatDiffersFromItsImage(t *testing.T) {
	each(t, func(t *testing.T, p *place, o backup.Options) {
		r, ctx := p.mustOpen(t, o), context.Background()
		image := content(1, 9<<20+512)
		volume := append(bytes.Clone(image), make([]byte, 13<<20-len(image))...)
		copy(volume[5<<20:], content(2, 1<<20))
		clear(volume[8<<20 : 8<<20+4096]) // data became zeros
		changed := []engine.Extent{{Offset: 5 << 20, Bytes: 1 << 20}, {Offset: 8 << 20, Bytes: 4096}}
		var m backup.Manifest
		s, err := r.Begin(ctx, false)
		must(t, err)
		m.Image = &backup.Image{Name: "fedora", ContentDigest: "d"}
		m.Image.Content, err = s.Write(ctx, whole(image), nil)
		must(t, err)
		before := s.Stats()
		m.Content, err = s.Write(ctx, backup.Input{File: bytes.NewReader(volume), Bytes: int64(len(volume)), Changed: changed, OverImage: true}, nil)
		must(t, err)
		if after := s.Stats(); after.ReadBytes-before.ReadBytes != 2*backup.BlockBytes {
			t.Errorf("%d bytes were read", after.ReadBytes-before.ReadBytes)
		}
		m.ID, m.Volume = "b-1", &backup.Volume{Name: "web-1", UID: "u"}
		must(t, s.Finish(ctx, &m))
		mustRestore(t, r, "b-1", volume)
		over := mustFile(t, image) // a clone of the image
		must(t, r.Restore(ctx, &m, over, backup.Restoring{}))
		mustHold(t, over, volume)
	})
}

func TestUnchangedPartsAreNotRead(t *testing.T) {
	for name, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, ctx := directory(t).mustOpen(t, o), context.Background()
			volume := content(1, 20<<20+512)
			last := mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
			for n, change := range []func() engine.Extent{
				func() engine.Extent { copy(volume[3<<20:], "changed"); return engine.Extent{Offset: 3 << 20, Bytes: 7} },
				func() engine.Extent {
					clear(volume[4<<20 : 8<<20])
					return engine.Extent{Offset: 4 << 20, Bytes: 4 << 20}
				},
				func() engine.Extent { // grown, which has the part block at the old end read
					volume = append(volume, make([]byte, 3<<20)...)
					return engine.Extent{}
				},
				func() engine.Extent { volume = volume[:9<<20]; return engine.Extent{} },
			} {
				e := change()
				s, err := r.Begin(ctx, false)
				must(t, err)
				has, err := s.HasPages(ctx, &last.Content)
				if err != nil || !has {
					t.Fatalf("has the last pages: %v, %v", has, err)
				}
				in := backup.Input{File: bytes.NewReader(volume), Bytes: int64(len(volume)), Changed: []engine.Extent{e}, Last: &last.Content}
				m := backup.Manifest{ID: "next", Volume: last.Volume}
				m.Content, err = s.Write(ctx, in, nil)
				must(t, err)
				must(t, s.Finish(ctx, &m))
				if m.Stats.ReadBytes > 3*backup.BlockBytes {
					t.Errorf("change %d: %d bytes were read", n, m.Stats.ReadBytes)
				}
				mustRestore(t, r, "next", volume)
				last = &m
			}
		})
	}
}

func TestKnownDigestsSaveReading(t *testing.T) {
	r := directory(t).mustOpen(t, backup.Options{})
	image := content(1, 9<<20)
	var digests manifest.Builder
	for i := 0; i*manifest.ChunkBytes < len(image); i++ {
		digests.Add(int64(i), image[i*manifest.ChunkBytes:min((i+1)*manifest.ChunkBytes, len(image))])
	}
	in := whole(image)
	in.Digests = digests.Manifest(int64(len(image)))
	first, second := mustSave(t, r, "b-1", backup.Manifest{}, in), mustSave(t, r, "b-2", backup.Manifest{}, in)
	if first.Stats.ReadBytes == 0 || second.Stats.ReadBytes != 0 {
		t.Errorf("read %d bytes, then %d", first.Stats.ReadBytes, second.Stats.ReadBytes)
	}
	mustRestore(t, r, "b-2", image)
}

func TestARestoreGoesOnWhereItWasCut(t *testing.T) {
	p := directory(t)
	r, ctx := p.mustOpen(t, backup.Options{}), context.Background()
	volume := content(1, 16<<20)
	m := mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
	f := mustFile(t, nil)
	cut, cancel := context.WithCancel(ctx)
	err := r.Restore(cut, m, f, backup.Restoring{WithImage: true, Concurrency: 1, Report: func(p backup.Progress) {
		if p.DoneBytes > 8<<20 {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("it was not cut")
	}
	garbage := make([]byte, 5000)
	rand.NewChaCha8([32]byte{9}).Read(garbage)
	_, err = f.WriteAt(garbage, 2<<20+5) // what a torn write may leave
	must(t, err)
	s := p.mustStore(t)
	again, err := backup.Open(ctx, s, backup.Options{})
	must(t, err)
	must(t, again.Restore(ctx, m, f, backup.Restoring{WithImage: true, Compare: true}))
	mustHold(t, f, volume)
	if s.Received() > 12<<20 {
		t.Errorf("%d bytes came again", s.Received())
	}
}

func TestHolesStayHoles(t *testing.T) {
	r := directory(t).mustOpen(t, backup.Options{})
	volume := make([]byte, 64<<20)
	copy(volume[40<<20:], content(1, 1<<20))
	m := mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
	f := mustFile(t, nil)
	must(t, r.Restore(context.Background(), m, f, backup.Restoring{WithImage: true}))
	mustHold(t, f, volume)
	if used := allocated(t, f); used > 2<<20 {
		t.Errorf("%d bytes are allocated", used)
	}
	for name, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
		t.Run("in an image too, whose digests are known without reading it, "+name, func(t *testing.T) { restoresImage(t, o, volume) })
	}
	if m.Stats.StoredBytes > backup.BlockBytes {
		t.Errorf("zeros were stored: %+v", m.Stats)
	}
}

// restoresImage backs a content up as an image's, and restores it twice: into nothing, and over something else.
func restoresImage(t *testing.T, o backup.Options, image []byte) {
	r, ctx := directory(t).mustOpen(t, o), context.Background()
	var want manifest.Builder
	for i := 0; i*manifest.ChunkBytes < len(image); i++ {
		want.Add(int64(i), image[i*manifest.ChunkBytes:(i+1)*manifest.ChunkBytes])
	}
	is := want.Manifest(int64(len(image)))
	s, err := r.Begin(ctx, false)
	must(t, err)
	m := &backup.Manifest{ID: "b-1", Image: &backup.Image{Name: "golden", ContentDigest: is.ContentDigest()}}
	m.Image.Content, err = s.Write(ctx, whole(image), nil)
	must(t, err)
	must(t, s.Finish(ctx, m))
	f := mustFile(t, nil)
	for again, before := range map[bool][]byte{false: nil, true: content(9, 8<<20)} {
		var got manifest.Builder
		must(t, f.Truncate(0))
		_, err := f.WriteAt(before, 3<<20)
		must(t, err)
		must(t, r.RestoreImage(ctx, m, f, backup.Restoring{Compare: again, Digests: &got}))
		mustHold(t, f, image)
		if digest := got.Manifest(int64(len(image))).ContentDigest(); digest != is.ContentDigest() {
			t.Errorf("the digests are those of %s, not %s", digest, is.ContentDigest())
		}
		if used := allocated(t, f); used > 2<<20 {
			t.Errorf("%d bytes are allocated", used)
		}
	}
}

func TestKeysAreComparedBeforeAnythingIsRead(t *testing.T) {
	for name, c := range map[string]struct{ made, asked backup.Options }{
		"another key":                {backup.Options{Key: key}, backup.Options{Key: otherKey}},
		"no key":                     {backup.Options{Key: key}, backup.Options{}},
		"a key where nothing is hid": {backup.Options{}, backup.Options{Key: key}},
	} {
		p := directory(t)
		mustSave(t, p.mustOpen(t, c.made), "b-1", backup.Manifest{}, whole(content(1, 1<<20)))
		s := p.mustStore(t)
		_, err := backup.OpenOrMake(context.Background(), s, c.asked)
		if !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("%s: %v", name, err)
		}
		if s.Received() > 1000 {
			t.Errorf("%s: %d bytes were read", name, s.Received())
		}
	}
	_, err := backup.OpenOrMake(context.Background(), directory(t).mustStore(t), backup.Options{Key: "hunter2hunter2"})
	if !backingimage.Is(err, backingimage.Invalid) || bytes.Contains([]byte(err.Error()), []byte("hunter2")) {
		t.Errorf("a key that is none: %v", err)
	}
}
