package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup/object"
)

var targets = &noun[*v1alpha1.BackupTarget, *v1alpha1.BackupTargetList]{
	kind: "BackupTarget", one: "backup target", many: "backup targets",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.BackupTarget, *v1alpha1.BackupTargetList] {
		return c.Targets
	},
	empty:  "Make one: plinth target add NAME --url URL",
	header: []string{"NAME", "URL", "READY", "ENCRYPTED", "AGE", "MESSAGE"},
	row: func(t *v1alpha1.BackupTarget, now time.Time) []string {
		return []string{t.Name, t.Spec.URL, conditionWord(t.Status.Conditions, v1alpha1.ConditionReady), yesNo(t.Status.Encrypted),
			ageText(now, t.CreationTimestamp), beginning(readyMessage(t.Status.Conditions))}
	},
	show: showTarget,
}

func newTargetCommand(c *cli) *cobra.Command {
	return group("target", "Places that backups are kept in", "Backup targets are object stores and directories that backups are kept in.",
		newTargetAddCommand(c), targets.lsCommand(c), targets.showCommand(c), newTargetRmCommand(c))
}

// readyMessage is what the Ready condition says.
func readyMessage(conditions []metav1.Condition) string {
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

func showTarget(_ context.Context, w io.Writer, _ *store.Client, t *v1alpha1.BackupTarget, now time.Time) error {
	secret := t.Spec.Secret
	if t.Spec.SecretNamespace != "" {
		secret = t.Spec.SecretNamespace + "/" + secret
	}
	fields := []field{
		{"Name", t.Name}, {"URL", t.Spec.URL}, {"Secret", secret}, {"Ready", conditionText(t.Status.Conditions, v1alpha1.ConditionReady)},
		{"Encrypted", yesNo(t.Status.Encrypted)}, {"Upload limit", perSecond(t.Spec.UploadBytesPerSecond)}, {"Download limit", perSecond(t.Spec.DownloadBytesPerSecond)},
	}
	if at := t.Status.CheckedTime; at != nil {
		fields = append(fields, field{"Last looked at", timeText(now, *at)})
	}
	if at := t.Status.CollectedTime; at != nil {
		fields = append(fields, field{"Garbage collected", timeText(now, *at)})
	}
	return printFields(w, append(fields, field{"Created", timeText(now, t.CreationTimestamp)})...)
}

func perSecond(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return sizeText(bytes) + "/s"
}

func newTargetAddCommand(c *cli) *cobra.Command {
	t := &v1alpha1.BackupTarget{}
	var upload, download string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "add NAME --url URL",
		Short: "Say where backups are kept",
		Long: `Add makes a backup target and waits until it was tried: a wrong bucket, a key that does not fit or a directory that is not mounted
are told at once.

The secret has the keys of the object store, and ca.crt for a private certificate authority:
  s3://      AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINTS, AWS_REGION
  gs://      GOOGLE_APPLICATION_CREDENTIALS: the content of a service account's key file, or the word ambient for the identity of
             the machine or pod; GOOGLE_STORAGE_ENDPOINT
  azblob://  AZBLOB_ACCOUNT_NAME, and AZBLOB_ACCOUNT_KEY or AZBLOB_SAS_TOKEN; AZBLOB_ENDPOINT
When it also has PLINTH_BACKUP_KEY, 32 bytes in base64 or hexadecimal, backups are encrypted with it: keep that key elsewhere, too,
since nothing can be restored without it. A place that is encrypted stays so.`,
		Example: `  plinth target add nas --url file:///mnt/backups
  openssl rand -base64 32 > backup.key
  plinth secret create s3 --from-env-file keys.env --from-file PLINTH_BACKUP_KEY=backup.key
  plinth target add offsite --url s3://my-backups/cluster-1 --secret s3
  plinth secret create google --from-file GOOGLE_APPLICATION_CREDENTIALS=key.json
  plinth target add google --url gs://my-backups/cluster-1 --secret google`,
		Args: program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			t.Name = args[0]
			if t.Spec.UploadBytesPerSecond, err = parseSize("--upload-limit", upload); err != nil {
				return err
			}
			if t.Spec.DownloadBytesPerSecond, err = parseSize("--download-limit", download); err != nil {
				return err
			}
			return c.addTarget(cmd.Context(), t, timeout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&t.Spec.URL, "url", "", "`URL`: s3://bucket/prefix, gs://bucket/prefix, azblob://container/prefix or file:///directory")
	f.StringVar(&t.Spec.Secret, "secret", "", "`name` of the secret with the keys")
	f.StringVar(&t.Spec.SecretNamespace, "secret-namespace", "", "`namespace` of the secret (default \"default\")")
	f.StringVar(&upload, "upload-limit", "", "most `bytes` a second that each node sends, e.g. 50Mi (default: no limit)")
	f.StringVar(&download, "download-limit", "", "most `bytes` a second that each node receives (default: no limit)")
	f.Int32Var(&t.Spec.Concurrency, "concurrency", 0, "`number` of blocks of a backup that are on their way at once (default: 4)")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long to wait until the target was tried; 0 does not wait")
	return cmd
}

func (c *cli) addTarget(ctx context.Context, t *v1alpha1.BackupTarget, timeout time.Duration) error {
	if err := validateName("a backup target", t.Name); err != nil {
		return err
	}
	if _, err := object.ParseLocation("--url", t.Spec.URL); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	made, err := client.Targets.Create(ctx, t, metav1.CreateOptions{})
	if err != nil {
		return apiError(err, "create", "backup target", t.Name)
	}
	if timeout > 0 {
		if made, err = c.waitForTarget(ctx, client, made, timeout); err != nil {
			return err
		}
	}
	as := ""
	if made.Status.Encrypted {
		as = "; backups there are encrypted"
	}
	_, err = fmt.Fprintf(c.out, "backup target %s added (%s)%s\n", t.Name, t.Spec.URL, as)
	return err
}

// waitForTarget returns when the target is known to be usable, or not to be.
func (c *cli) waitForTarget(ctx context.Context, client *store.Client, t *v1alpha1.BackupTarget, timeout time.Duration) (*v1alpha1.BackupTarget, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := targets.get(ctx, client, t.Name)
		if err != nil {
			return false, err
		}
		t = now
		ready := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil || ready.ObservedGeneration != t.Generation {
			meter.say("backup target " + t.Name + " is being tried")
			return false, nil
		}
		if ready.Status != metav1.ConditionTrue {
			return true, backingimage.Errorf(backingimage.Precondition, "backup target %s was made and cannot be used: %s; mend that, or remove it with: plinth target rm %s", t.Name, ready.Message, t.Name)
		}
		return true, nil
	})
	return t, timedOut(err, timeout, "backup target %s was made, and nobody has tried it yet; does the controller run?", t.Name)
}

func newTargetRmCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Forget backup targets",
		Long: "Rm forgets where backups are. The backups stay there, and can be restored when a target with the same URL and key is added, here or\n" +
			"in another cluster.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: targets.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				if _, err := targets.get(cmd.Context(), client, name); err != nil {
					return err
				}
				if err := client.Targets.Delete(cmd.Context(), name, metav1.DeleteOptions{}); err != nil {
					return apiError(err, "delete", "backup target", name)
				}
				if _, err := fmt.Fprintf(c.out, "backup target %s forgotten; the backups in it stay\n", name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
