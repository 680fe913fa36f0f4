package provisioner_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner"
)

const sha256Hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// sourced is a class whose image a is made in some way.
func sourced(from, parameters string) map[string]string {
	return map[string]string{"backingImage": "a", "backingImageDataSourceType": from, "backingImageDataSourceParameters": parameters}
}

func TestParseParametersAccepts(t *testing.T) {
	for name, tc := range map[string]struct {
		raw  map[string]string
		want provisioner.Parameters
	}{
		"nothing, for an empty volume": {},
		"an image by Longhorn's name": {
			raw:  map[string]string{"backingImage": "fedora-42"},
			want: provisioner.Parameters{Image: "fedora-42"},
		},
		"an image by the name in Longhorn's documentation": {
			raw:  map[string]string{"backingImageName": "fedora-42"},
			want: provisioner.Parameters{Image: "fedora-42"},
		},
		"both names, when they agree": {
			raw:  map[string]string{"backingImageName": "fedora-42", "backingImage": "fedora-42"},
			want: provisioner.Parameters{Image: "fedora-42"},
		},
		"an image on demand, with everything": {
			raw: map[string]string{
				"backingImage": "fedora", "backingImageDataSourceType": "download",
				"backingImageDataSourceParameters": `{"url": "https://example.org/f.qcow2"}`,
				"backingImageChecksum":             "SHA256:" + strings.ToUpper(sha256Hex),
				"backingImageMinNumberOfCopies":    "2", "backingImageNodeSelector": "a, b,", "backingImageDiskSelector": "",
				"nodeSelector": "x", "diskSelector": "ssd,nvme", "mkfsParams": "-O ^64bit", "partition": "2", "fsType": "xfs",
			},
			want: provisioner.Parameters{
				Image: "fedora", SourceType: v1alpha1.SourceDownload, SourceParameters: map[string]string{"url": "https://example.org/f.qcow2"},
				Checksum: "sha256:" + sha256Hex, MinNumberOfCopies: 2, ImageNodeSelector: []string{"a", "b"},
				NodeSelector: []string{"x"}, DiskSelector: []string{"ssd", "nvme"}, MkfsParams: "-O ^64bit", Partition: 2,
			},
		},
		"an export of a volume": {
			raw:  sourced("export-from-volume", `{"volume-name": "VM disk", "export-type": "qcow2"}`),
			want: provisioner.Parameters{Image: "a", SourceType: v1alpha1.SourceExport, SourceParameters: map[string]string{"volume-name": "VM disk", "export-type": "qcow2"}},
		},
		"a clone with Longhorn's keys": {
			raw:  sourced("clone", `{"backing-image": "b", "encryption": "ignore", "secret": "s", "secret-namespace": "n"}`),
			want: provisioner.Parameters{Image: "a", SourceType: v1alpha1.SourceClone, SourceParameters: map[string]string{"backing-image": "b", "encryption": "ignore", "secret": "s", "secret-namespace": "n"}},
		},
		"an upload, for an image that exists": {
			raw:  sourced("upload", `{}`),
			want: provisioner.Parameters{Image: "a", SourceType: v1alpha1.SourceUpload, SourceParameters: map[string]string{}},
		},
		"a restore, for an image that exists": {
			raw:  sourced("restore", `{"backup-url": "s3://b@r/?backup=x", "concurrent-limit": "2"}`),
			want: provisioner.Parameters{Image: "a", SourceType: v1alpha1.SourceRestore, SourceParameters: map[string]string{"backup-url": "s3://b@r/?backup=x", "concurrent-limit": "2"}},
		},
		"Longhorn's knobs for replicas, with one warning": {
			raw:  map[string]string{"numberOfReplicas": "1", "dataEngine": "v1", "staleReplicaTimeout": "30", "dataLocality": "disabled", "encrypted": "false", "fromBackup": ""},
			want: provisioner.Parameters{Ignored: []string{"dataLocality", "staleReplicaTimeout"}},
		},
		"what the sidecar says of the claim": {
			raw: map[string]string{"csi.storage.k8s.io/pvc/name": "c", "csi.storage.k8s.io/pvc/namespace": "n", "csi.storage.k8s.io/pv/name": "p"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := provisioner.ParseParameters(tc.raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseParametersRefuses(t *testing.T) {
	download := func(url string) map[string]string {
		return map[string]string{"backingImage": "a", "backingImageDataSourceType": "download", "backingImageDataSourceParameters": `{"url": "` + url + `"}`}
	}
	for name, tc := range map[string]struct {
		raw  map[string]string
		says []string // what the message must hold: the key, the value, the remedy
	}{
		"an unknown key, with the nearest":      {map[string]string{"backingimage": "a"}, []string{`"backingimage"`, `did you mean "backingImage"`}},
		"an unknown key that is like no other":  {map[string]string{"zzzzzzzz": "a"}, []string{`"zzzzzzzz"`, "not known"}},
		"two names that contradict":             {map[string]string{"backingImage": "a", "backingImageName": "b"}, []string{"backingImageName", `"b"`, `"a"`, "keep one"}},
		"a name that no object can have":        {map[string]string{"backingImage": "../etc"}, []string{"backingImage", `"../etc"`, "lowercase"}},
		"parameters that are no JSON":           {map[string]string{"backingImage": "a", "backingImageDataSourceParameters": "{url: x}"}, []string{"backingImageDataSourceParameters", `{url: x}`, `write it like {"url"`}},
		"parameters that are not strings":       {map[string]string{"backingImage": "a", "backingImageDataSourceParameters": `{"url": 1}`}, []string{"JSON object of strings"}},
		"a type nobody knows":                   {map[string]string{"backingImage": "a", "backingImageDataSourceType": "torrent"}, []string{"backingImageDataSourceType", `"torrent"`, "use download"}},
		"an export without a volume":            {sourced("export-from-volume", `{}`), []string{"backingImageDataSourceParameters", "volume-name"}},
		"an export in a format nobody knows":    {sourced("export-from-volume", `{"volume-name": "v", "export-type": "vmdk"}`), []string{"export-type", `"vmdk"`, "raw or qcow2"}},
		"a clone without an image":              {sourced("clone", `{}`), []string{"backing-image", "missing"}},
		"a clone of a name no image has":        {sourced("clone", `{"backing-image": "A/b"}`), []string{"backing-image", `"A/b"`}},
		"a clone of itself":                     {sourced("clone", `{"backing-image": "a"}`), []string{`"a"`, "itself"}},
		"a parameter of another type":           {sourced("clone", `{"backing-image": "b", "url": "https://e.org/a"}`), []string{`"url"`, "clone", "it has backing-image"}},
		"an upload with parameters":             {sourced("upload", `{"url": "https://e.org/a"}`), []string{`"url"`, "upload", "it has none"}},
		"an image restored from nowhere":        {map[string]string{"restoreImageFrom": "memory"}, []string{"restoreImageFrom", `"memory"`, "source"}},
		"a restore from nowhere":                {sourced("restore", `{"backup-url": "s3://b/?backup=x", "restore-from": "memory"}`), []string{"restore-from", `"memory"`, "source"}},
		"a restore without a backup":            {sourced("restore", `{}`), []string{"backup-url"}},
		"a source without a type":               {map[string]string{"backingImage": "a", "backingImageDataSourceParameters": `{"url":"https://e.org/a"}`}, []string{"backingImageDataSourceType", "set"}},
		"a source without an image":             {map[string]string{"backingImageDataSourceType": "download"}, []string{"backingImageDataSourceType", "set backingImage"}},
		"a checksum without an image":           {map[string]string{"backingImageChecksum": sha256Hex}, []string{"backingImageChecksum", "set backingImage"}},
		"a checksum of a wrong length":          {map[string]string{"backingImage": "a", "backingImageChecksum": "abc"}, []string{"backingImageChecksum", "abc"}},
		"no copies":                             {map[string]string{"backingImage": "a", "backingImageMinNumberOfCopies": "0"}, []string{"backingImageMinNumberOfCopies", `"0"`, "1 to 100"}},
		"copies that are no number":             {map[string]string{"backingImage": "a", "backingImageMinNumberOfCopies": "many"}, []string{`"many"`}},
		"a download without a URL":              {map[string]string{"backingImage": "a", "backingImageDataSourceType": "download"}, []string{"url"}},
		"a URL with stray backslashes":          {download(`https:\\/\\/e.org\\/a`), []string{"url", `\`}},
		"a URL of another scheme":               {download("ftp://e.org/a"), []string{"url", "ftp", "http"}},
		"a URL without a host":                  {download("https:///a"), []string{"url", "host"}},
		"a URL without a scheme":                {download("//host/a"), []string{"url", "http"}},
		"a file system nobody makes":            {map[string]string{"fsType": "ntfs"}, []string{"fsType", `"ntfs"`, "ext4 or xfs"}},
		"a partition out of range":              {map[string]string{"partition": "0"}, []string{"partition", `"0"`}},
		"several replicas":                      {map[string]string{"numberOfReplicas": "3"}, []string{"numberOfReplicas", `"3"`, "set it to 1"}},
		"another engine":                        {map[string]string{"dataEngine": "v2"}, []string{"dataEngine", `"v2"`}},
		"encryption, which must not be ignored": {map[string]string{"encrypted": "true"}, []string{"encrypted", "not encrypted"}},
		"the URL of no backup":                  {map[string]string{"fromBackup": "s3://bucket/prefix"}, []string{"fromBackup", "s3://bucket/prefix", "backup=ID"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := provisioner.ParseParameters(tc.raw)
			if !backingimage.Is(err, backingimage.Invalid) {
				t.Fatalf("got %v, want Invalid", err)
			}
			for _, s := range tc.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("message %q does not say %q", err, s)
				}
			}
		})
	}
}

func TestEncryptedClonesAreUnsupported(t *testing.T) {
	_, err := provisioner.ParseParameters(sourced("clone", `{"backing-image": "b", "encryption": "encrypt", "secret": "s", "secret-namespace": "n"}`))
	if !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "images are not encrypted in this version") {
		t.Errorf("got %v", err)
	}
}

// FuzzParseParameters parses an image's class with any type and parameters, and one more key.
func FuzzParseParameters(f *testing.F) {
	f.Add("download", `{"url":"https://e.org/a"}`, "partition", "1")
	f.Add("clone", `{"backing-image":"b"}`, "mkfsParams", "'")
	f.Fuzz(func(t *testing.T, from, parameters, key, value string) {
		class := sourced(from, parameters)
		class[key] = value
		_, err := provisioner.ParseParameters(class)
		if err != nil && !backingimage.Is(err, backingimage.Invalid) && !backingimage.Is(err, backingimage.Unsupported) {
			t.Errorf("an error that says nothing: %v", err)
		}
	})
}

func TestVolumeID(t *testing.T) {
	for name, tc := range map[string]struct{ a, b string }{
		"plain names differ":                   {"pvc-1", "pvc-2"},
		"names that are no labels are hashed":  {"Pvc-1", "pvc-1"},
		"a long name differs in its last rune": {strings.Repeat("a", 100) + "x", strings.Repeat("a", 100) + "y"},
		"a name that looks like a hashed one":  {"Ä", provisioner.VolumeID("Ä")},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := provisioner.VolumeID(tc.a), provisioner.VolumeID(tc.b)
			if a == b {
				t.Errorf("%q and %q are both %q", tc.a, tc.b, a)
			}
			if err := provisioner.ValidateName(a); err != nil {
				t.Error(err)
			}
		})
	}
	if got := provisioner.VolumeID("pvc-0b1f"); got != "pvc-0b1f" {
		t.Errorf("a plain name becomes %q", got)
	}
}
