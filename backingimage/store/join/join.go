// Package join is how other machines come to an embedded API: a directory beside its data, in which the API says where it is
// reached, and which holds a token for each node that may come.
//
//	api            the kubeconfig of whoever joins, without a token
//	nodes/<name>   the SHA-256, in hexadecimal, of the token of the node of that name
//
// A token is made once, given away once in a kubeconfig, and kept nowhere: who reads the directory cannot use it. One token is
// one node's, so that the API knows who writes, and taking a node's back bars no other. A token that is made anew replaces
// the node's last one; one that is taken back opens nothing from the next request on.
//
// The program that gives tokens away and the API that checks them are different processes; the files are all that they share.
package join

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// DirectoryBelow is the directory of the API that keeps its data in a data directory.
func DirectoryBelow(dataDir string) string { return filepath.Join(dataDir, "control-plane", "join") }

// Directory is what one API and those who join it share. Its methods can be called at the same time, also by several processes.
type Directory struct {
	path string

	mu    sync.Mutex
	read  time.Time         // the time of change of nodes/ when it was read last
	nodes map[string]string // names by the hash of the token
}

// Open names a directory. It reads and makes nothing.
func Open(path string) *Directory { return &Directory{path: path} }

func (d *Directory) api() string           { return filepath.Join(d.path, "api") }
func (d *Directory) tokens() string        { return filepath.Join(d.path, "nodes") }
func (d *Directory) token(n string) string { return filepath.Join(d.tokens(), n) }
func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
func validate(node string) (problem []string) { return validation.IsDNS1123Subdomain(node) }

// Announce says where the API is reached, and by which certificate (PEM) it is known. The API does so at each start.
func (d *Directory) Announce(server string, certificate []byte) error {
	if err := os.MkdirAll(d.tokens(), 0o700); err != nil {
		return fmt.Errorf("tell how to join: %w", err)
	}
	const name = "plinth"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: certificate}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	content, err := clientcmd.Write(*cfg)
	if err != nil {
		return fmt.Errorf("tell how to join: %w", err)
	}
	return durable.WriteFile(d.api(), content, 0o600)
}

// Kubeconfig is what a node joins with, and the URL of the API in it. Its token is a new one, in place of the node's last. Invalid when the name is none;
// NotFound when no API has been announced.
func (d *Directory) Kubeconfig(node string) (content []byte, server string, err error) {
	if problems := validate(node); len(problems) > 0 {
		return nil, "", backingimage.Errorf(backingimage.Invalid, "%q cannot be the name of a node: %s", node, problems[0])
	}
	text, err := os.ReadFile(d.api())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", backingimage.Errorf(backingimage.NotFound, "there is no %s: start plinth standalone, which writes it, or name its data directory", d.api())
	}
	if err != nil {
		return nil, "", fmt.Errorf("read how to join: %w", err)
	}
	cfg, err := clientcmd.Load(text)
	if err != nil || cfg.Contexts[cfg.CurrentContext] == nil || cfg.Clusters[cfg.CurrentContext] == nil {
		return nil, "", backingimage.Errorf(backingimage.Corrupt, "%s is damaged; restart plinth standalone, which writes it anew", d.api())
	}
	token := rand.Text()
	cfg.AuthInfos[cfg.CurrentContext] = &clientcmdapi.AuthInfo{Token: token}
	if content, err = clientcmd.Write(*cfg); err != nil {
		return nil, "", fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := durable.WriteFile(d.token(node), []byte(hash(token)+"\n"), 0o600); err != nil {
		return nil, "", fmt.Errorf("keep the token of node %s: %w", node, err)
	}
	return content, cfg.Clusters[cfg.CurrentContext].Server, nil
}

// Revoke takes a node's token back. NotFound when it has none.
func (d *Directory) Revoke(node string) error {
	if problems := validate(node); len(problems) > 0 {
		return backingimage.Errorf(backingimage.Invalid, "%q cannot be the name of a node: %s", node, problems[0])
	}
	err := os.Remove(d.token(node))
	if errors.Is(err, fs.ErrNotExist) {
		return backingimage.Errorf(backingimage.NotFound, "node %s has no token", node)
	}
	if err != nil {
		return fmt.Errorf("take back the token of node %s: %w", node, err)
	}
	return durable.SyncDir(d.tokens())
}

// NodeOf returns the name of the node whose token it is, "" when it is nobody's.
func (d *Directory) NodeOf(token string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refresh(); err != nil {
		return "", err
	}
	return d.nodes[hash(token)], nil
}

// settled is how old a change must be for the directory's time to tell it from a later one: file systems keep times as coarse as
// the kernel's tick.
const settled = time.Second

// refresh reads the tokens again when the directory has changed.
func (d *Directory) refresh() error {
	info, err := os.Stat(d.tokens())
	if errors.Is(err, fs.ErrNotExist) {
		d.nodes, d.read = nil, time.Time{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the tokens of nodes: %w", err)
	}
	if d.read.Equal(info.ModTime()) {
		return nil
	}
	nodes, err := d.readTokens()
	if err != nil {
		return fmt.Errorf("read the tokens of nodes: %w", err)
	}
	d.nodes, d.read = nodes, time.Time{}
	if time.Since(info.ModTime()) > settled {
		d.read = info.ModTime()
	}
	return nil
}

func (d *Directory) readTokens() (map[string]string, error) {
	entries, err := os.ReadDir(d.tokens())
	if err != nil {
		return nil, err
	}
	nodes := map[string]string{}
	for _, e := range entries {
		if len(validate(e.Name())) > 0 { // a write that is not done
			continue
		}
		content, err := os.ReadFile(d.token(e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sum := strings.TrimSpace(string(content)); len(sum) == hex.EncodedLen(sha256.Size) {
			nodes[sum] = e.Name()
		}
	}
	return nodes, nil
}
