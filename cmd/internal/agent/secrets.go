package agent

import (
	"context"
	"path/filepath"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

// SecretsDirectory is the directory of secrets below that of the data.
const SecretsDirectory = "secrets"

// secrets are Kubernetes' where the API has them, and files of this machine where it has none. Which, is asked when an image
// first names a secret: the API need not answer when the process starts.
type secrets struct {
	cfg  *rest.Config
	file *credential.Directory

	mu     sync.Mutex
	chosen credential.Reader // nil: not asked yet
}

// openSecrets makes the directory, so that people find where to put them.
func openSecrets(cfg *rest.Config, dataDir string) (*secrets, error) {
	file, err := credential.OpenDirectory(filepath.Join(dataDir, SecretsDirectory))
	if err != nil {
		return nil, err
	}
	return &secrets{cfg: cfg, file: file}, nil
}

// Get implements credential.Reader. NotReady while the API does not say which kinds it has.
func (s *secrets) Get(ctx context.Context, ref credential.Ref) (map[string][]byte, error) {
	from, err := s.choose()
	if err != nil {
		return nil, err
	}
	return from.Get(ctx, ref)
}

func (s *secrets) choose() (credential.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chosen != nil {
		return s.chosen, nil
	}
	has, err := hasSecrets(s.cfg)
	if err != nil {
		return nil, err
	}
	if !has {
		s.chosen = s.file
		return s.chosen, nil
	}
	kubernetes, err := credential.NewKubernetes(s.cfg)
	if err != nil {
		return nil, err
	}
	s.chosen = kubernetes
	return s.chosen, nil
}

// hasSecrets reports whether the API serves the kind Secret, as a cluster's does and an embedded one does not.
func hasSecrets(cfg *rest.Config) (bool, error) {
	client, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return false, err
	}
	core, err := client.ServerResourcesForGroupVersion("v1")
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, backingimage.Errorf(backingimage.NotReady, "ask the API whether it has secrets: %w", err)
	}
	return containsSecrets(core.APIResources), nil
}

func containsSecrets(kinds []metav1.APIResource) bool {
	for _, r := range kinds {
		if r.Name == "secrets" {
			return true
		}
	}
	return false
}
