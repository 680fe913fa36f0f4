package main

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store"
)

// standaloneKubeconfig is where `plinth standalone` with its default data directory writes its kubeconfig.
const standaloneKubeconfig = "/var/lib/plinth/kubeconfig"

// apiTimeout bounds one request, so that a server that accepts and never answers does not hold a command for ever.
const apiTimeout = 30 * time.Second

// client makes the typed clients for the API that the flags and the environment name.
func (c *cli) client() (*store.Client, error) {
	cfg, err := c.restConfig()
	if err != nil {
		return nil, err
	}
	cfg.Timeout = apiTimeout
	cfg.QPS = -1 // a person's commands need no rate limit, and its errors would hide the server's
	return store.NewClient(cfg)
}

// processConfig is restConfig for what runs in a pod: its service account comes before files that nobody named, which may be those of
// a plinth standalone that was on the machine.
func (c *cli) processConfig() (*rest.Config, error) {
	if !c.kubeconfigNamed() {
		if inside, err := rest.InClusterConfig(); err == nil {
			return inside, nil
		}
	}
	return c.restConfig()
}

// kubeconfigNamed reports whether the flag or the environment name a kubeconfig.
func (c *cli) kubeconfigNamed() bool {
	return c.kubeconfig+os.Getenv("PLINTH_KUBECONFIG")+os.Getenv("KUBECONFIG") != ""
}

func (c *cli) restConfig() (*rest.Config, error) {
	paths, err := kubeconfigPaths(c.kubeconfig, os.Getenv)
	if err != nil && !c.kubeconfigNamed() {
		if inside, ierr := rest.InClusterConfig(); ierr == nil { // a pod's service account
			return inside, nil
		}
	}
	if err != nil {
		return nil, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: paths}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "kubeconfig %s: %w", paths, err)
	}
	return cfg, nil
}

// kubeconfigPaths returns the files to read: those that were asked for by the flag or the environment, else the first of
// the well-known ones that exists.
func kubeconfigPaths(flag string, getenv func(string) string) ([]string, error) {
	asked, by := []string{flag}, "--kubeconfig"
	if flag == "" {
		asked, by = []string{getenv("PLINTH_KUBECONFIG")}, "$PLINTH_KUBECONFIG"
	}
	if asked[0] == "" {
		asked, by = filepath.SplitList(getenv("KUBECONFIG")), "$KUBECONFIG"
	}
	if len(asked) > 0 {
		if !anyExists(asked) {
			return nil, backingimage.Errorf(backingimage.NotFound, "%s: there is no file %s; is plinth standalone running with another --data-dir?", by, asked[0])
		}
		return asked, nil
	}
	for _, path := range []string{standaloneKubeconfig, filepath.Join(getenv("HOME"), ".kube", "config")} {
		if anyExists([]string{path}) {
			return []string{path}, nil
		}
	}
	return nil, backingimage.Errorf(backingimage.NotFound, "no kubeconfig found (looked at --kubeconfig, $PLINTH_KUBECONFIG, $KUBECONFIG, %s, ~/.kube/config): "+
		"start `plinth standalone`, or name the kubeconfig of its data directory or of a cluster with --kubeconfig", standaloneKubeconfig)
}

func anyExists(paths []string) bool {
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// apiError gives an error of the API its Kind, and a remedy when nobody answered.
func apiError(err error, action, noun, name string) error {
	var unreachable *url.Error
	if errors.As(err, &unreachable) && !errors.Is(err, context.Canceled) {
		return backingimage.Errorf(backingimage.NotReady, "%s %s %q: the API does not answer: %w; is `plinth standalone` running, and is this its kubeconfig?", action, noun, name, unreachable.Err)
	}
	return store.Classify(action, noun, name, err)
}
