package main

import (
	"context"
	"net/netip"

	"golang.org/x/net/http/httpproxy"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/credential/kubernetes"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/cmd/internal/openers"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/backup"
)

// repository opens a target from here, as the target's object and its secret say, and returns its URL too.
func (c *cli) repository(ctx context.Context, name string) (*backup.Repository, string, error) {
	client, err := c.client()
	if err != nil {
		return nil, "", err
	}
	t, err := targets.get(ctx, client, name)
	if err != nil {
		return nil, "", err
	}
	secret, err := c.targetSecret(ctx, t)
	if err != nil {
		return nil, "", err
	}
	// A person may reach what that person's machine reaches.
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	access := source.Options{AllowCIDRs: everywhere, Proxy: httpproxy.FromEnvironment().ProxyFunc()}
	r, err := provisioner.OpenTarget(ctx, t, secret, openers.Backups, access, backup.Open)
	return r, t.Spec.URL, err
}

// targetSecret is the content of a target's secret, nil when it names none.
func (c *cli) targetSecret(ctx context.Context, t *v1alpha1.BackupTarget) (map[string][]byte, error) {
	if t.Spec.Secret == "" {
		return nil, nil
	}
	ref, err := credential.NewRef(t.Spec.SecretNamespace, t.Spec.Secret)
	if err != nil {
		return nil, err
	}
	cfg, err := c.restConfig()
	if err != nil {
		return nil, err
	}
	inKubernetes, err := cluster.Serves(cfg, "secrets")
	if err != nil {
		return nil, err
	}
	var from credential.Reader
	if inKubernetes {
		from, err = kubernetes.New(cfg)
	} else {
		from, err = secretPlace{}.open(c)
	}
	if err != nil {
		return nil, err
	}
	return from.Get(ctx, ref)
}

// namedBackup is a backup in its target.
type namedBackup struct {
	repository *backup.Repository
	manifest   *backup.Manifest
	url        string
}

// findBackup finds a backup by the name of its object, or in the target that the flag names.
func (c *cli) findBackup(ctx context.Context, f backupFlags, name string) (namedBackup, error) {
	target := f.target
	if target == "" {
		client, err := c.client()
		if err != nil {
			return namedBackup{}, err
		}
		b, err := backups.get(ctx, client, name)
		if backingimage.Is(err, backingimage.NotFound) {
			return namedBackup{}, backingimage.Errorf(backingimage.NotFound, "there is no backup %q of this cluster; for what others made, name the place with --target", name)
		}
		if err != nil {
			return namedBackup{}, err
		}
		if b.Status.State != v1alpha1.BackupReady {
			return namedBackup{}, backingimage.Errorf(backingimage.Precondition, "backup %s is %s: %s", name, backupState(b), readyMessage(b.Status.Conditions))
		}
		target, name = b.Spec.Target, string(b.UID)
	}
	r, url, err := c.repository(ctx, target)
	if err != nil {
		return namedBackup{}, err
	}
	m, err := r.Find(ctx, name, "")
	if err != nil {
		r.Close()
		return namedBackup{}, err
	}
	of := namedBackup{repository: r, manifest: m}
	volume, image := "", ""
	if m.Volume != nil {
		volume = m.Volume.Name
	} else {
		image = m.Image.Name
	}
	of.url = backup.URL(url, m.ID, volume, image)
	return of, nil
}

// defaultTarget is the name of the only target that there is.
func (c *cli) defaultTarget(ctx context.Context) (string, error) {
	client, err := c.client()
	if err != nil {
		return "", err
	}
	_, all, err := targets.list(ctx, client, metav1.ListOptions{})
	switch {
	case err != nil:
		return "", err
	case len(all) == 0:
		return "", backingimage.Errorf(backingimage.Precondition, "there is no backup target; make one with: plinth target add NAME --url URL")
	case len(all) > 1:
		return "", backingimage.Errorf(backingimage.Invalid, "--target: there are %d backup targets; name the one that is meant", len(all))
	}
	return all[0].Name, nil
}
