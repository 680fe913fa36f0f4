package mount_test

import (
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/csi/mount/mounttest"
)

const mib = 1 << 20

func mustInspect(tb testing.TB, path string) mount.Device {
	tb.Helper()
	d, err := mount.Inspect(path)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestProbe(t *testing.T) {
	cases := []struct {
		name    string
		prepare func(t *testing.T, device string)
		want    mount.Content
		blank   bool
	}{
		{
			name:    "nothing on a new device",
			prepare: func(*testing.T, string) {},
			want:    mount.Content{Zeros: true},
			blank:   true,
		}, {
			name:    "nothing that can be recognised",
			prepare: func(t *testing.T, d string) { mounttest.MustWriteAt(t, d, 64<<10, []byte("data")) },
			blank:   true,
		}, {
			name:    "ext4",
			prepare: func(t *testing.T, d string) { mounttest.MustRun(t, "mkfs.ext4", "-q", "-F", d) },
			want:    mount.Content{Type: "ext4", Filesystem: true},
		}, {
			name:    "xfs",
			prepare: func(t *testing.T, d string) { mounttest.MustRun(t, "mkfs.xfs", "-q", d) },
			want:    mount.Content{Type: "xfs", Filesystem: true},
		}, {
			name: "xfs whose mkfs was killed is unfinished",
			prepare: func(t *testing.T, d string) {
				mounttest.MustRun(t, "mkfs.xfs", "-q", d)
				mounttest.MustWriteAt(t, d, 126, []byte{1})
			},
			want: mount.Content{Type: "xfs", Filesystem: true, Unfinished: true},
		}, {
			name: "LUKS is no filesystem",
			prepare: func(t *testing.T, d string) {
				mounttest.MustWriteAt(t, d, 0, []byte("LUKS\xba\xbe\x00\x01"))
			},
			want: mount.Content{Type: "crypto_LUKS"},
		}, {
			name: "partitions and what is in them, unknown to the kernel",
			prepare: func(t *testing.T, d string) {
				mounttest.MustPartition(t, d, mounttest.Partition{Start: 2048, Sectors: 8192}, mounttest.Partition{Start: 10240, Sectors: 262144})
				mounttest.MustRun(t, "mkfs.ext4", "-q", "-F", "-E", "offset=5242880", d, "128M")
			},
			want: mount.Content{PartitionTable: "dos", Partitions: []mount.Partition{{Number: 1, Bytes: 4 * mib}, {Number: 2, Bytes: 128 * mib, Type: "ext4"}}},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			device, _ := mounttest.Loop(t, 400*mib)
			c.prepare(t, device)
			got, err := mount.Probe(t.Context(), mustInspect(t, device))
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, c.want)
			equal(t, got.Blank(), c.blank)
		})
	}
}

func TestProbeRefusesContradictions(t *testing.T) {
	device, _ := mounttest.Loop(t, 400*mib)
	mounttest.MustRun(t, "mkfs.ext4", "-q", "-F", device)
	mounttest.MustWriteAt(t, device, 0, []byte("XFSB\x00\x00\x10\x00"))
	other, _ := mounttest.Loop(t, 400*mib)
	mounttest.MustRun(t, "mkfs.xfs", "-q", other)
	mounttest.MustRun(t, "dd", "if="+other, "of="+device, "bs=512", "count=1", "conv=notrunc,fsync", "status=none")
	_, err := mount.Probe(t.Context(), mustInspect(t, device))
	if !backingimage.Is(err, backingimage.Precondition) {
		t.Fatalf("got %v, want Precondition", err)
	}
}

func TestProbeOfAShrunkenDeviceIsAnErrorAndNotBlank(t *testing.T) {
	device, file := mounttest.Loop(t, 64*mib)
	d := mustInspect(t, device)
	mounttest.MustTruncate(t, file, 1*mib) // the end of the device cannot be read any more
	if got, err := mount.Probe(t.Context(), d); err == nil {
		t.Fatalf("got %+v, want an error", got)
	}
}

func TestInspectOfAFileIsNotFound(t *testing.T) {
	file := t.TempDir() + "/file"
	mounttest.MustTruncate(t, file, mib)
	for _, path := range []string{file, file + "-missing"} {
		if _, err := mount.Inspect(path); !backingimage.Is(err, backingimage.NotFound) {
			t.Errorf("Inspect(%s) = %v, want NotFound", path, err)
		}
	}
}
