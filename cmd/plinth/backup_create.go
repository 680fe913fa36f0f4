package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// backupRequest is what the flags of `backup create` ask for.
type backupRequest struct {
	volume, image, target, name string
	full, wait                  bool
	timeout                     time.Duration
	labels                      map[string]string
}

// defaultBackupTimeout is how long a backup may take before a person wants the prompt back.
const defaultBackupTimeout = 24 * time.Hour

func newBackupCreateCommand(c *cli) *cobra.Command {
	var r backupRequest
	cmd := &cobra.Command{
		Use:   "create [VOLUME]",
		Short: "Back up a volume, or an image",
		Long: `Create backs up a volume as it is at one moment, frozen for that moment where it is mounted, or an image with --image. Of a
volume whose last backup is known, what did not change since is not read; of one that began as an image, what is still the image's is
not read.`,
		Example: "  plinth backup create web-1\n  plinth backup create web-1 --target offsite --name before-upgrade\n  plinth backup create --image debian",
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (r.image != "") || len(args) > 1 {
				return program.UsageError(cmd, "name one volume, or an image with --image")
			}
			return nil
		},
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.volume = args[0]
			}
			return c.createBackup(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.image, "image", "", "`image` to back up instead of a volume")
	f.StringVar(&r.target, "target", "", "`name` of the backup target (default: the only one)")
	f.StringVar(&r.name, "name", "", "`name` of the backup (default: the volume's, with the time)")
	f.BoolVar(&r.full, "full", false, "read all of the volume's data, not only what changed, and what the target has of it, so that what is damaged there is replaced")
	f.StringToStringVar(&r.labels, "label", nil, "`key=value` that is kept with the backup; may be repeated")
	f.BoolVar(&r.wait, "wait", true, "show the progress, and return when the backup is complete")
	f.DurationVar(&r.timeout, "timeout", defaultBackupTimeout, "how long to wait; the backup goes on after it")
	_ = cmd.RegisterFlagCompletionFunc("image", images.complete(c)) // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("target", targets.complete(c))
	return cmd
}

func (c *cli) createBackup(ctx context.Context, r backupRequest) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	b, err := c.backupObject(ctx, client, r)
	if err != nil {
		return err
	}
	made, err := client.Backups.Create(ctx, b, metav1.CreateOptions{})
	if err != nil {
		return apiError(err, "create", "backup", b.Name)
	}
	if !r.wait {
		_, err = fmt.Fprintf(c.out, "backup %s begun\n", made.Name)
		return err
	}
	if made, err = c.waitForBackup(ctx, client, made, r.timeout); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "backup %s is complete: %s, of which %s were read and %s uploaded\n", made.Name,
		backingimage.SizeText(made.Status.Bytes), backingimage.SizeText(made.Status.ReadBytes), backingimage.SizeText(made.Status.UploadedBytes))
	return err
}

// backupObject checks the request and is the object that it stands for.
func (c *cli) backupObject(ctx context.Context, client *store.Client, r backupRequest) (*v1alpha1.Backup, error) {
	b := &v1alpha1.Backup{ObjectMeta: metav1.ObjectMeta{Name: r.name, Labels: r.labels}, Spec: v1alpha1.BackupSpec{Target: r.target, Image: r.image, Full: r.full}}
	of := r.image
	if r.volume != "" {
		v, err := findVolume(ctx, client, r.volume)
		if err != nil {
			return nil, err
		}
		b.Spec.Volume, of = v.Name, v.Name
	} else if _, err := images.get(ctx, client, r.image); err != nil {
		return nil, err
	}
	if b.Name == "" {
		b.Name = of + "-" + c.clock.Now().UTC().Format("20060102-150405")
	}
	if err := validateName("a backup", b.Name); err != nil {
		return nil, err
	}
	if b.Spec.Target != "" {
		_, err := targets.get(ctx, client, b.Spec.Target)
		return b, err
	}
	var err error
	b.Spec.Target, err = c.defaultTarget(ctx)
	return b, err
}

// waitForBackup shows the progress until the backup is complete, has failed, or the time is over.
func (c *cli) waitForBackup(ctx context.Context, client *store.Client, b *v1alpha1.Backup, timeout time.Duration) (*v1alpha1.Backup, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := backups.get(ctx, client, b.Name)
		if err != nil {
			return false, err
		}
		if now.UID != b.UID {
			return true, backingimage.Errorf(backingimage.NotFound, "backup %s was deleted meanwhile", b.Name)
		}
		b = now
		switch b.Status.State {
		case v1alpha1.BackupReady:
			return true, nil
		case v1alpha1.BackupFailed:
			return true, backingimage.Errorf(backingimage.Precondition, "backup %s failed: %s", b.Name, readyMessage(b.Status.Conditions))
		}
		s := b.Status
		meter.show(progress{
			what: "backup " + b.Name, state: backupState(b), message: readyMessage(s.Conditions), percent: s.Progress, doneBytes: s.BytesDone, totalBytes: s.BytesTotal,
			bytesPerSecond: s.BytesPerSecond, secondsLeft: s.ETASeconds,
		})
		return false, nil
	})
	return b, timedOut(err, timeout, "backup %s is not complete: %s; it goes on, see: plinth backup show %s", b.Name, readyMessage(b.Status.Conditions), b.Name)
}
