package provisioner_test

import (
	"maps"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner"
)

func TestHandlesAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]provisioner.Handle{
		"snap://pvc-1/snapshot-2": {Type: "snap", Volume: "pvc-1", Name: "snapshot-2"},
		"bak://pvc-1/backup-2":    {Type: "bak", Volume: "pvc-1", Name: "backup-2"},
		"bi://backing?backingImage=golden&backingImageDataSourceType=download&url=https%3A%2F%2Fexample.org%2Fa%3Fb%26c": {Type: "bi", Image: map[string]string{
			"backingImage": "golden", "backingImageDataSourceType": "download", "backingImageDataSourceParameters": `{"url":"https://example.org/a?b\u0026c"}`,
		}},
		"bi://backing?backingImage=exported&backingImageDataSourceType=export-from-volume&export-type=qcow2&volume-name=v": {Type: "bi", Image: map[string]string{
			"backingImage": "exported", "backingImageDataSourceType": "export-from-volume", "backingImageDataSourceParameters": `{"export-type":"qcow2","volume-name":"v"}`,
		}},
		"bi://backing?backingImage=golden": {Type: "bi", Image: map[string]string{"backingImage": "golden"}},
	} {
		h, err := provisioner.ParseHandle(text)
		if err != nil || h.Type != want.Type || h.Volume != want.Volume || h.Name != want.Name || !maps.Equal(h.Image, want.Image) {
			t.Errorf("%s: got %+v, %v", text, h, err)
		}
		if h.String() != text {
			t.Errorf("%s: written as %s", text, h)
		}
	}
	if h, err := provisioner.ParseHandle("bs://v/b"); err != nil || h.String() != "bak://v/b" {
		t.Errorf("Longhorn's older scheme: %v, %v", h, err)
	}
}

func TestOtherHandlesAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":                          "begins with none",
		"snapshot-1":                "begins with none",
		"http://v/s":                "begins with none",
		"snap://":                   "not snap://VOLUME/NAME",
		"snap://v":                  "not snap://VOLUME/NAME",
		"snap://v/s/t":              "not snap://VOLUME/NAME",
		"snap://v/..":               "not snap://VOLUME/NAME",
		"snap://v/%2e%2e%2fs":       "not snap://VOLUME/NAME",
		"snap://v/s?x=y":            "not snap://VOLUME/NAME",
		"snap://u:secret@v/s":       "a login",
		"snap://v/s#x":              "a fragment",
		"bi://other?backingImage=i": "not bi://backing",
		"bi://backing/x?a=b":        "not bi://backing",
		"bi://backing":              "names no backingImage",
		"bi://backing?backingImageDataSourceType=download&url=https%3A%2F%2Fa":  "backingImage",
		"bi://backing?backingImage=i&backingImage=j":                            "more than once",
		"bi://backing?backingImage=i&backingImageDataSourceType=torrent":        "torrent",
		"bi://backing?backingImage=i&backingImageDataSourceType=download&uri=x": "uri",
		"bi://backing?backingImage=I":                                           "not a name",
		"bi://backing?backingImage=i&url=%zz":                                   "escaped",
	} {
		if h, err := provisioner.ParseHandle(text); !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %+v, %v; want Invalid with %q", text, h, err, says)
		}
	}
}

func FuzzParseHandle(f *testing.F) {
	f.Add("snap://v/s")
	f.Add("bi://backing?backingImage=golden&backingImageDataSourceType=download&url=https%3A%2F%2Fexample.org%2Fa")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := provisioner.ParseHandle(text)
		if err != nil {
			return
		}
		again, err := provisioner.ParseHandle(h.String())
		if err != nil || again.String() != h.String() {
			t.Errorf("%q is written as %q, which is read as %+v, %v", text, h, again, err)
		}
	})
}

func TestSnapshotParameters(t *testing.T) {
	for name, tc := range map[string]struct {
		raw  map[string]string
		want provisioner.SnapshotParameters
		says string // of the refusal
	}{
		"none are a snapshot on the disk": {nil, provisioner.SnapshotParameters{Type: "snap"}, ""},
		"a backup":                        {map[string]string{"type": "bak"}, provisioner.SnapshotParameters{Type: "bak"}, ""},
		"a backup, as Longhorn had it":    {map[string]string{"type": "bs"}, provisioner.SnapshotParameters{Type: "bak"}, ""},
		"an image":                        {map[string]string{"type": "bi"}, provisioner.SnapshotParameters{Type: "bi", ExportType: "raw"}, ""},
		"an image as qcow2": {map[string]string{"type": "bi", "export-type": "qcow2", "exportType": "qcow2", "csi.storage.k8s.io/volumesnapshot/name": "s"},
			provisioner.SnapshotParameters{Type: "bi", ExportType: "qcow2"}, ""},
		"empty values are not given": {map[string]string{"type": "", "exportType": "", "diskSelector": ""}, provisioner.SnapshotParameters{Type: "snap"}, ""},
		"another type":               {map[string]string{"type": "snapshot"}, provisioner.SnapshotParameters{}, `"snapshot" is no type`},
		"another format":             {map[string]string{"type": "bi", "exportType": "vmdk"}, provisioner.SnapshotParameters{}, `"vmdk"`},
		"two formats":                {map[string]string{"type": "bi", "exportType": "raw", "export-type": "qcow2"}, provisioner.SnapshotParameters{}, "contradicts"},
		"a format of no image":       {map[string]string{"exportType": "raw"}, provisioner.SnapshotParameters{}, "exportType: is for snapshots of type bi"},
		"a selector of no image":     {map[string]string{"type": "bak", "diskSelector": "ssd"}, provisioner.SnapshotParameters{}, "diskSelector: is for snapshots of type bi"},
		"a key misspelt":             {map[string]string{"exporttype": "raw"}, provisioner.SnapshotParameters{}, `did you mean "exportType"?`},
		"a key nobody knows":         {map[string]string{"deletionPolicyOfTheClass": "x"}, provisioner.SnapshotParameters{}, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := provisioner.ParseSnapshotParameters(tc.raw)
			if tc.says != "" {
				if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %+v, %v; want Invalid with %q", got, err, tc.says)
				}
				return
			}
			if err != nil || got.Type != tc.want.Type || got.ExportType != tc.want.ExportType || len(got.DiskSelector)+len(got.NodeSelector) > 0 {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
