package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

func newSecretCommand(c *cli) *cobra.Command {
	return group("secret", "Secrets with which images are fetched",
		"Secrets say who asks when an image is fetched: a password, a token, headers, a client certificate, keys of an object store.\n"+
			"Images name them (plinth image create --secret); what they hold is never shown again. These are the secrets of plinth\n"+
			"standalone, in a directory that only root reads. In Kubernetes, use its own: kubectl create secret.",
		newSecretCreateCommand(c), newSecretLsCommand(c), newSecretRmCommand(c))
}

// secretPlace is where a secret is: the directory, and the namespace in it.
type secretPlace struct{ dir, namespace string }

func (p *secretPlace) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.dir, "secrets-dir", "", "`directory` of the secrets (default: secrets, beside the kubeconfig of plinth standalone)")
	cmd.Flags().StringVarP(&p.namespace, "namespace", "n", credential.DefaultNamespace, "`namespace` of the secret, as in secret-namespace of an image")
}

// open returns the secrets of the standalone whose kubeconfig is in use.
func (p secretPlace) open(c *cli) (*credential.Directory, error) {
	if p.dir != "" {
		return credential.OpenDirectory(p.dir)
	}
	paths, err := kubeconfigPaths(c.kubeconfig, os.Getenv)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(filepath.Dir(paths[0]), "secrets")
	if _, err := os.Stat(dir); err != nil {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no directory of secrets %s: start plinth standalone, which makes it beside its kubeconfig, name it with --secrets-dir, or, in Kubernetes, use kubectl create secret", dir)
	}
	return credential.OpenDirectory(dir)
}
