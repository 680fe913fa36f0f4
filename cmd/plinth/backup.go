package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup"
)

var backups = &noun[*v1alpha1.Backup, *v1alpha1.BackupList]{
	kind: "Backup", one: "backup", many: "backups",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.Backup, *v1alpha1.BackupList] { return c.Backups },
	empty:    "Make one: plinth backup create VOLUME. What other clusters made: plinth backup ls --target NAME",
	header:   []string{"NAME", "OF", "TARGET", "STATE", "SIZE", "READ", "UPLOADED", "AGE", "MESSAGE"},
	row: func(b *v1alpha1.Backup, now time.Time) []string {
		message := readyMessage(b.Status.Conditions)
		if b.Status.State == v1alpha1.BackupReady {
			message = ""
		}
		return []string{b.Name, backupOf(b), b.Spec.Target, backupState(b), sizeText(b.Status.Bytes), sizeText(b.Status.ReadBytes), sizeText(b.Status.UploadedBytes), ageText(now, b.CreationTimestamp), beginning(message)}
	},
	show: showBackup,
}

func newBackupCommand(c *cli) *cobra.Command {
	return group("backup", "Copies of volumes and images in an object store",
		"Backups are volumes at one moment, and images, in a backup target. Each can be restored and removed by itself; what two of them have in\n"+
			"common is stored once. The last one of each volume keeps a snapshot on the volume's disk, so that the next reads only what changed.",
		newBackupCreateCommand(c), newBackupLsCommand(c), newBackupShowCommand(c), newBackupRmCommand(c), newBackupVerifyCommand(c), newBackupRestoreCommand(c))
}

func backupOf(b *v1alpha1.Backup) string {
	if b.Spec.Image != "" {
		return "image " + b.Spec.Image
	}
	return "volume " + b.Spec.Volume
}

func backupState(b *v1alpha1.Backup) string {
	if b.DeletionTimestamp != nil {
		return "deleting"
	}
	return string(cmp.Or(b.Status.State, v1alpha1.BackupPending))
}

func showBackup(_ context.Context, w io.Writer, _ *store.Client, b *v1alpha1.Backup, now time.Time) error {
	s := b.Status
	fields := []field{
		{"Name", b.Name}, {"ID", string(b.UID)}, {"Of", backupOf(b)}, {"Target", b.Spec.Target}, {"URL", s.URL}, {"State", backupState(b)},
		{"Message", readyMessage(s.Conditions)}, {"Node", s.NodeName}, {"Size", exactSizeText(s.Bytes)}, {"Read", exactSizeText(s.ReadBytes)},
		{"Uploaded", exactSizeText(s.UploadedBytes)}, {"Compared with backup", s.Base}, {"Policy", b.Spec.Policy},
	}
	if s.TakenTime != nil {
		fields = append(fields, field{"Taken", timeText(now, metav1.NewTime(s.TakenTime.Time))})
	}
	if s.FinishedTime != nil {
		fields = append(fields, field{"Finished", timeText(now, *s.FinishedTime)})
	}
	return printFields(w, append(fields, field{"Created", timeText(now, b.CreationTimestamp)})...)
}

// backupFlags name a backup that may be one of another cluster.
type backupFlags struct{ target string }

func (f *backupFlags) add(c *cli, cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.target, "target", "", "`name` of the backup target to look in, by the backup's ID or name (default: look among this cluster's backups)")
	_ = cmd.RegisterFlagCompletionFunc("target", targets.complete(c)) // fails only for a flag that is not there
}

func newBackupLsCommand(c *cli) *cobra.Command {
	cmd := backups.lsCommand(c)
	var target string
	var o output
	cmd.Flags().StringVar(&target, "target", "", "`name` of a backup target: read the list from there, with what other clusters made")
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if target == "" {
			return here(cmd, args)
		}
		o = output(cmd.Flag("output").Value.String())
		return c.listTarget(cmd.Context(), target, o)
	}
	_ = cmd.RegisterFlagCompletionFunc("target", targets.complete(c)) // fails only for a flag that is not there
	return cmd
}

// listTarget lists what is in a target, whoever made it.
func (c *cli) listTarget(ctx context.Context, target string, o output) error {
	r, url, err := c.repository(ctx, target)
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.List(ctx)
	if err != nil {
		return err
	}
	ids, rows, manifests := []string{}, [][]string{}, []*backup.Manifest{}
	for _, l := range list {
		ids = append(ids, l.ID)
		if l.Err != nil {
			rows = append(rows, []string{l.ID, "", "", "", "", "", l.Err.Error()})
			continue
		}
		m := l.Manifest
		manifests = append(manifests, m)
		image := ""
		if m.Image != nil && m.Volume != nil {
			image = m.Image.Name
		}
		rows = append(rows, []string{m.ID, m.Name, m.Of(), image, sizeText(m.Bytes()), ageText(c.clock.Now(), metav1.NewTime(m.Taken)), ""})
	}
	return o.print(c.out, manifests, ids, func() error {
		if len(rows) == 0 {
			_, err := fmt.Fprintf(c.err, "No backups in %s.\n", url)
			return err
		}
		return printTable(c.out, []string{"ID", "NAME", "OF", "IMAGE", "SIZE", "AGE", "MESSAGE"}, rows)
	})
}

func newBackupShowCommand(c *cli) *cobra.Command {
	cmd := backups.showCommand(c)
	var f backupFlags
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.target == "" {
			return here(cmd, args)
		}
		o := output(cmd.Flag("output").Value.String())
		return c.showInTarget(cmd.Context(), f, args[0], o)
	}
	f.add(c, cmd)
	return cmd
}

func (c *cli) showInTarget(ctx context.Context, f backupFlags, name string, o output) error {
	b, err := c.findBackup(ctx, f, name)
	if err != nil {
		return err
	}
	defer b.repository.Close()
	m := b.manifest
	return o.print(c.out, m, []string{m.ID}, func() error {
		fields := []field{
			{"ID", m.ID}, {"Name", m.Name}, {"Of", m.Of()}, {"URL", b.url}, {"Size", exactSizeText(m.Bytes())}, {"Taken", timeText(c.clock.Now(), metav1.NewTime(m.Taken))},
			{"Written", timeText(c.clock.Now(), metav1.NewTime(m.Written))}, {"Own content", exactSizeText(m.Stats.StoredBytes)}, {"Uploaded", exactSizeText(m.Stats.SentBytes)},
		}
		if m.Image != nil {
			fields = append(fields, field{"Image", m.Image.Name}, field{"Content digest", m.Image.ContentDigest})
		}
		return printFields(c.out, fields...)
	})
}

func newBackupRmCommand(c *cli) *cobra.Command {
	var f backupFlags
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Remove backups from their targets",
		Long: "Rm removes backups. Other backups keep all that they need; what none needs any longer leaves the target after its grace time, a day.\n" +
			"With --target, backups are removed that this cluster has no object of, by their ID or name.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: backups.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := c.removeBackup(cmd.Context(), f, name, timeout); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.add(c, cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait until it is gone; the deletion goes on after it")
	return cmd
}

func (c *cli) removeBackup(ctx context.Context, f backupFlags, name string, timeout time.Duration) error {
	if f.target != "" {
		b, err := c.findBackup(ctx, f, name)
		if err != nil {
			return err
		}
		defer b.repository.Close()
		if err := b.repository.Remove(ctx, b.manifest.ID); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.out, "backup %s removed from target %s\n", b.manifest.ID, f.target)
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	b, err := backups.get(ctx, client, name)
	if err != nil {
		return err
	}
	if err := client.Backups.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(b.UID))}); err != nil {
		return apiError(err, "delete", "backup", name)
	}
	if err := backups.waitUntilGone(ctx, c, client, b, timeout, func(b *v1alpha1.Backup) string { return readyMessage(b.Status.Conditions) }); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "backup %s removed\n", name)
	return err
}
