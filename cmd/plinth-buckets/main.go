// Command plinth-buckets is what plinth runs while it keeps backups in Google Cloud Storage or Azure Blob Storage: it speaks to one
// bucket there. It is a binary of its own because the drivers that it links would cost every other process 20 MB of binary and
// 14 MB of memory. Nobody else runs it: it is told what to do through files that plinth opens for it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/apart"
	"plinth.dev/plinth/provisioner/backup/object/azure"
	"plinth.dev/plinth/provisioner/backup/object/gcs"
)

var openers = map[string]object.Opener{object.SchemeGCS: gcs.Open, object.SchemeAzure: azure.Open}

func main() {
	// A signal to the whole group, as a terminal or systemd sends it, is plinth's: it may have work to end here.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := apart.Serve(context.Background(), openers); err != nil {
		klog.ErrorS(err, "Buckets cannot be served")
		klog.Flush()
		os.Exit(1)
	}
}
