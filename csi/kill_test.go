package csi_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// A volume is exported under a process that is killed at any moment: the export is made all the same, whole, and the volume's
// filesystem is not left frozen.
func TestExportsAreMadeDespiteKills(t *testing.T) {
	o := mustOrchestrator(t)
	request := createVolume("source")
	request.Secrets = nil
	_, err := o.CreateVolume(t.Context(), request)
	must(t, err)
	path := o.mustStage(t, "source")
	data := make([]byte, 64*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for i := range 3 {
		data[0] = byte(i)
		must(t, os.WriteFile(path+"/data", data, 0o600)) // and no sync
		image, volume := fmt.Sprint("export-", i), fmt.Sprint("of-export-", i)
		o.MustCLI("image", "create", image, "--from-volume", "source")
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		o.Kill()
		o.Restart()
		o.MustCLI("image", "wait", image, "--timeout", "1m")
		copied := o.mustStage(t, o.mustCreate(t, volume, map[string]string{"backingImage": image}))
		if got, err := os.ReadFile(copied + "/data"); err != nil || !bytes.Equal(got, data) {
			t.Errorf("export %d has %d bytes, or other ones than the volume (%v)", i, len(got), err)
		}
		o.mustRemove(t, volume)
	}
	must(t, os.WriteFile(path+"/thawed", nil, 0o600))
	o.mustRemove(t, "source")
}
