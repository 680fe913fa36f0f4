package fetch_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
)

func mustRun(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// mustQCOW2 makes a qcow2 image of content.
func mustQCOW2(tb testing.TB, content []byte, options ...string) []byte {
	tb.Helper()
	dir := tb.TempDir()
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	mustRun(tb, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, image)...)
	file, err := os.ReadFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

func TestQCOW2BecomesRaw(t *testing.T) {
	content := image(1, 9<<20)
	var digest string
	for name, options := range map[string][]string{"plain": nil, "zlib": {"-c"}, "zstd": {"-c", "-o", "compression_type=zstd"}} {
		s := &server{content: mustQCOW2(t, content, options...)}
		j := job(t, mustServe(t, s))
		var steps []string
		early := false
		result, err := fetch.Run(context.Background(), j, func(p fetch.Progress) {
			early = early || p.Step == fetch.Downloading && p.VirtualBytes == 9<<20 && p.Format == format.QCOW2
			if len(steps) == 0 || steps[len(steps)-1] != p.Step {
				steps = append(steps, p.Step)
			}
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		mustEqual(t, j.Dir, content, result)
		if result.Checksum != sha512Hex(s.content) || result.Format != format.QCOW2 || result.RealBytes >= 9<<20 {
			t.Errorf("%s: the result is %+v", name, result)
		}
		if digest != "" && digest != result.ContentDigest {
			t.Errorf("%s: another content digest than the same content otherwise packed", name)
		}
		digest = result.ContentDigest
		if strings.Join(steps, " ") != "downloading converting" || !early {
			t.Errorf("%s: steps %v, virtual size known early: %t", name, steps, early)
		}
	}
}

func TestHostileQCOW2EndsTheAttemptForGood(t *testing.T) {
	good := mustQCOW2(t, image(1, 3<<20))
	for name, c := range map[string]struct {
		file []byte
		kind backingimage.Kind
	}{
		"truncated":    {good[:len(good)-100<<10], backingimage.Corrupt},
		"backing file": {append(append([]byte{}, good[:15]...), append([]byte{9, 0, 0, 0, 3}, good[20:]...)...), backingimage.Unsupported},
		"encrypted":    {append(append([]byte{}, good[:35]...), append([]byte{2}, good[36:]...)...), backingimage.Unsupported},
	} {
		j := job(t, mustServe(t, &server{content: c.file}))
		if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, c.kind) {
			t.Errorf("%s: got %v error %v", name, backingimage.KindOf(err), err)
		}
		mustBeGone(t, j.Dir)
	}
}
