package agent

import (
	"context"
	"path/filepath"
	"sync"

	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/credential/kubernetes"
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
	has, err := cluster.Serves(s.cfg, "secrets")
	if err != nil {
		return nil, err
	}
	if !has {
		s.chosen = s.file
		return s.chosen, nil
	}
	inKubernetes, err := kubernetes.New(s.cfg)
	if err != nil {
		return nil, err
	}
	s.chosen = inKubernetes
	return s.chosen, nil
}
