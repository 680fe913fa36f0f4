package backup_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup"
	"plinth.dev/plinth/provisioner/backup/object"
)

// mustFind returns the objects in a folder of a directory's repository.
func mustFind(tb testing.TB, p *place, folder string) []string {
	tb.Helper()
	var found []string
	must(tb, filepath.WalkDir(filepath.Join(p.dir, folder), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	}))
	if len(found) == 0 {
		tb.Fatalf("nothing is in %s", folder)
	}
	return found
}

// bomb is an object that says little and expands to much.
func bomb(tb testing.TB, says uint32) []byte {
	tb.Helper()
	e, err := zstd.NewWriter(nil)
	must(tb, err)
	packed := e.EncodeAll(make([]byte, 128<<20), nil)
	object := append([]byte("PLBK\x01b\x01\x00"), make([]byte, 8)...)
	binary.LittleEndian.PutUint32(object[8:], says)
	binary.LittleEndian.PutUint32(object[12:], uint32(len(packed)))
	return append(object, packed...)
}

// TestDamageIsFoundAndNamed: whatever is done to an object of a kind, restore and verification say which it is, and give nothing else.
func TestDamageIsFoundAndNamed(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b = bytes.Clone(b); b[(at+len(b))%len(b)] ^= 1; return b }
	}
	damages := map[string]func([]byte) []byte{
		"missing":              func([]byte) []byte { return nil },
		"empty":                func([]byte) []byte { return []byte{} },
		"cut":                  func(b []byte) []byte { return b[:len(b)-1] },
		"longer":               func(b []byte) []byte { return append(bytes.Clone(b), 0) },
		"of something else":    func([]byte) []byte { return []byte("<html>not found</html>") },
		"magic flipped":        flip(0),
		"kind flipped":         flip(5),
		"flags flipped":        flip(6),
		"reserved flipped":     flip(7),
		"content size flipped": flip(10),
		"stored size flipped":  flip(12),
		"first byte flipped":   flip(16),
		"last byte flipped":    flip(-1),
		"too large":            func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 70<<20)...) },
	}
	for as, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
		for _, folder := range []string{"blocks", "pages", "backups"} {
			for name, damage := range damages {
				t.Run(as+" "+folder+" "+name, func(t *testing.T) {
					t.Parallel()
					p := directory(t)
					r := p.mustOpen(t, o)
					m := mustSave(t, r, "b-1", backup.Manifest{}, whole(content(1, 3<<20)))
					path := mustFind(t, p, folder)[0]
					object, err := os.ReadFile(path)
					must(t, err)
					if changed := damage(object); changed != nil {
						must(t, os.WriteFile(path, changed, 0o600))
					} else {
						must(t, os.Remove(path))
					}
					err = readAll(t, r, m)
					if !strings.Contains(err.Error(), filepath.Base(path)) || backingimage.KindOf(err) == backingimage.Internal {
						t.Errorf("got %v", err)
					}
				})
			}
		}
	}
}

// readAll reads a damaged backup in each way there is; all must refuse it. It returns what the restore says.
func readAll(t *testing.T, r *backup.Repository, m *backup.Manifest) error {
	t.Helper()
	ctx := context.Background()
	found, err := r.Backup(ctx, m.ID)
	if err != nil {
		list, lerr := r.List(ctx)
		if lerr != nil || len(list) > 0 && list[0].Err == nil {
			t.Errorf("listed %+v, %v", list, lerr)
		}
		return err
	}
	err = r.Restore(ctx, found, mustFile(t, nil), backup.Restoring{WithImage: true})
	if err == nil {
		t.Fatal("it was restored")
	}
	if v, verr := r.Verify(ctx, found, nil); verr != nil || v.Damaged != 1 || !backingimage.Is(v.Err(), backingimage.Corrupt) {
		t.Errorf("verified %+v, %v", v, verr)
	}
	return err
}

// TestAFullBackupMendsTheTarget: what is damaged is replaced by whoever proves what he finds.
func TestAFullBackupMendsTheTarget(t *testing.T) {
	for as, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
		p, ctx := directory(t), context.Background()
		r, volume := p.mustOpen(t, o), content(1, 5<<20)
		mustSave(t, r, "b-1", backup.Manifest{}, whole(volume))
		for _, folder := range []string{"blocks", "pages"} {
			path := mustFind(t, p, folder)[0]
			object, err := os.ReadFile(path)
			must(t, err)
			object[len(object)-1] ^= 1
			must(t, os.WriteFile(path, object, 0o600))
		}
		s, err := r.Begin(ctx, true)
		must(t, err)
		m := backup.Manifest{ID: "b-2", Volume: &backup.Volume{Name: "web-1"}}
		m.Content, err = s.Write(ctx, whole(volume), nil)
		must(t, err)
		must(t, s.Finish(ctx, &m))
		if m.Stats.NewBytes == 0 || m.Stats.NewBytes > backup.BlockBytes {
			t.Errorf("%s: %d bytes were sent", as, m.Stats.NewBytes)
		}
		mustRestore(t, r, "b-1", volume)
	}
}

func TestBombsAreNotExpanded(t *testing.T) {
	for name, says := range map[string]uint32{"that lies": 3 << 19, "that says so": 128 << 20} {
		p := directory(t)
		r := p.mustOpen(t, backup.Options{})
		m := mustSave(t, r, "b-1", backup.Manifest{}, whole(content(1, 3<<20)))
		for _, path := range mustFind(t, p, "blocks") {
			must(t, os.WriteFile(path, bomb(t, says), 0o600))
		}
		if err := r.Restore(context.Background(), m, mustFile(t, nil), backup.Restoring{WithImage: true}); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("a bomb %s: %v", name, err)
		}
	}
}

func TestObjectsCannotChangePlaces(t *testing.T) {
	for name, o := range map[string]backup.Options{"plain": {}, "encrypted": {Key: key}} {
		p := directory(t)
		r := p.mustOpen(t, o)
		m := mustSave(t, r, "b-1", backup.Manifest{}, whole(content(1, 5<<20)))
		mustSave(t, r, "b-2", backup.Manifest{}, whole(content(2, 5<<20)))
		blocks := mustFind(t, p, "blocks")
		first, err := os.ReadFile(blocks[0])
		must(t, err)
		for _, path := range blocks[1:] {
			must(t, os.WriteFile(path, first, 0o600))
		}
		if err := r.Restore(context.Background(), m, mustFile(t, nil), backup.Restoring{WithImage: true}); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: blocks of others: %v", name, err)
		}
		must(t, os.Rename(filepath.Join(p.dir, "backups", "b-2"), filepath.Join(p.dir, "backups", "b-1")))
		if _, err := r.Backup(context.Background(), "b-1"); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: the manifest of another: %v", name, err)
		}
	}
}

// sealed makes an object whose checksum is right.
func sealed(kind byte, text string) []byte {
	object := append([]byte("PLBK\x01"), kind, 0, 0)
	object = binary.LittleEndian.AppendUint32(object, uint32(len(text)))
	object = binary.LittleEndian.AppendUint32(object, uint32(len(text)+32))
	object = append(object, text...)
	sum := blake3.Sum256(object)
	return append(object, sum[:]...)
}

func TestManifestsAreNotTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		kind backingimage.Kind
	}{
		"newer":                  {`{"version":2,"id":"b-1"}`, backingimage.Unsupported},
		"no JSON":                {`version 1`, backingimage.Corrupt},
		"another backup's":       {`{"version":1,"id":"b-2","volume":{}}`, backingimage.Corrupt},
		"of nothing":             {`{"version":1,"id":"b-1"}`, backingimage.Corrupt},
		"negative":               {`{"version":1,"id":"b-1","volume":{},"content":{"bytes":-1}}`, backingimage.Corrupt},
		"huge":                   {`{"version":1,"id":"b-1","volume":{},"content":{"bytes":9223372036854775807}}`, backingimage.Corrupt},
		"large without pages":    {`{"version":1,"id":"b-1","volume":{},"content":{"bytes":1099511627776}}`, backingimage.Corrupt},
		"pages without size":     {`{"version":1,"id":"b-1","volume":{},"content":{"bytes":0,"pages":["` + strings.Repeat("00", 31) + `01"]}}`, backingimage.Corrupt},
		"an ID that is a path":   {`{"version":1,"id":"b-1","volume":{},"content":{"bytes":1,"pages":["../../../../etc/passwd"]}}`, backingimage.Corrupt},
		"an image beyond bounds": {`{"version":1,"id":"b-1","image":{"content":{"bytes":-5}}}`, backingimage.Corrupt},
	} {
		p := directory(t)
		r := p.mustOpen(t, backup.Options{})
		must(t, os.MkdirAll(filepath.Join(p.dir, "backups"), 0o700))
		must(t, os.WriteFile(filepath.Join(p.dir, "backups", "b-1"), sealed('m', c.text), 0o600))
		if _, err := r.Backup(context.Background(), "b-1"); !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), "backups/b-1") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.Collect(context.Background()); !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), "nothing was removed") {
			t.Errorf("%s: collected: %v", name, err)
		}
	}
}

func TestIDsCannotLeaveTheirFolder(t *testing.T) {
	r := directory(t).mustOpen(t, backup.Options{})
	for _, id := range []string{"", ".", "..", "../plinth-backup.json", "a/b", "a\x00b", "a..b", "A", "-a", strings.Repeat("a", 300)} {
		if _, err := r.Backup(context.Background(), id); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%q is read: %v", id, err)
		}
		if err := r.Remove(context.Background(), id); !backingimage.Is(err, backingimage.Invalid) {
			t.Errorf("%q is removed: %v", id, err)
		}
	}
}

func TestDescriptionsAreNotTrusted(t *testing.T) {
	for text, kind := range map[string]backingimage.Kind{
		``: backingimage.Corrupt, `<html>`: backingimage.Corrupt, `{"version":2}`: backingimage.Unsupported,
		`{"version":1,"blockBytes":1,"digest":"blake3","graceSeconds":60}`:                            backingimage.Corrupt,
		`{"version":1,"blockBytes":2097152,"digest":"blake3","graceSeconds":0}`:                       backingimage.Corrupt,
		`{"version":1,"blockBytes":2097152,"digest":"md5","graceSeconds":60}`:                         backingimage.Unsupported,
		`{"version":1,"blockBytes":2097152,"digest":"blake3","encryption":"rot13","graceSeconds":60}`: backingimage.Precondition,
	} {
		p := directory(t)
		must(t, os.WriteFile(filepath.Join(p.dir, "plinth-backup.json"), []byte(text), 0o600))
		if _, err := backup.OpenOrMake(context.Background(), p.mustStore(t), backup.Options{}); !backingimage.Is(err, kind) || !strings.Contains(err.Error(), "plinth-backup.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPlacesThatAreWrongSaySoAtOnce(t *testing.T) {
	gone := &place{url: "file://" + t.TempDir() + "/not-mounted"}
	l, err := object.ParseLocation("url", gone.url)
	must(t, err)
	if _, err := (object.Openers{}).Open(context.Background(), l, gone.access, gone.options); !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "mount") {
		t.Errorf("a directory that is not there: %v", err)
	}
	server := s3Server(t)
	wrong(t, server, otherBucket, "no bucket another-bucket")
	wrong(t, server, func(p *place) { p.access.Credential.SecretAccessKey = "wrong" }, "SignatureDoesNotMatch")
	must(t, backup.Probe(context.Background(), server.mustStore(t)))
	must(t, backup.Probe(context.Background(), directory(t).mustStore(t)))
}

func otherBucket(p *place) { p.url = strings.Replace(p.url, bucket, "another-bucket", 1) }

// wrong probes a place that was changed.
func wrong(t *testing.T, p *place, change func(p *place), says string) {
	t.Helper()
	wrong := *p
	change(&wrong)
	err := backup.Probe(context.Background(), wrong.mustStore(t))
	if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), secretKey) {
		t.Errorf("got %v, which does not say %s", err, says)
	}
}

func TestLocations(t *testing.T) {
	for raw, want := range map[string]string{
		"s3://my-bucket": "s3://my-bucket", "s3://my-bucket/": "s3://my-bucket", "S3://my-bucket/a/b/": "s3://my-bucket/a/b",
		"s3://my-bucket@eu-1/a": "s3://my-bucket@eu-1/a", "file:///mnt/nas": "file:///mnt/nas", "gs://my_bucket.example.org/p": "gs://my_bucket.example.org/p", "azblob://ctr": "azblob://ctr",
		"azblob://my-ctr@core.windows.net/a/": "azblob://my-ctr@core.windows.net/a",
		"":                                    "", "s3://": "", "s3://UPPER": "", "file://mnt/nas": "", "file:///": "", "file:///a/../b": "", "s3://bucket/a//b": "", "s3://bucket/../b": "",
		"s3://bucket?x=1": "", "s3://bucket/a b ": "", "https://host/path": "", "/mnt/nas": "", "s3://key:secret@bucket/": "", "s3://bucket/%2e%2e": "", "nfs://host/x": "",
		"gs://": "", "gs://B/p": "", "gs://bucket@host/p": "", "azblob://": "", "azblob://a--b": "", "azblob://key:secret@host/": "", "azblob://ctr@host/": "", "azblob://ctr@-.net": "",
	} {
		l, err := object.ParseLocation("url", raw)
		if want == "" {
			if !backingimage.Is(err, backingimage.Invalid) || strings.Contains(err.Error(), "secret@") {
				t.Errorf("%q: %v, %v", raw, l, err)
			}
		} else if err != nil || l.String() != want {
			t.Errorf("%q: %v, %v", raw, l, err)
		}
	}
}
