package rig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// access is who may talk to the API server, and how it proves who it is: a certificate authority and its one certificate, a key for
// the tokens of service accounts, and a file of tokens.
type access struct {
	dir    string
	server string // URL
	tokens map[string]string
}

// Users that have a token.
const (
	admin             = "admin"
	controllerManager = "system:kube-controller-manager"
	scheduler         = "system:kube-scheduler"
)

// newAccess makes it all in dir, for an API server that is reached at addresses, the first of which is for everybody's use.
func newAccess(dir string, nodes []string, addresses ...string) (*access, error) {
	a := &access{dir: dir, server: "https://" + addresses[0], tokens: map[string]string{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := a.certificates(addresses); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	var lines strings.Builder
	add := func(user, group string) {
		a.tokens[user] = rand.Text()
		fmt.Fprintf(&lines, "%s,%s,%s,%q\n", a.tokens[user], user, user, group)
	}
	add(admin, "system:masters")
	add(controllerManager, "")
	add(scheduler, "")
	for _, n := range nodes {
		add(nodeUser(n), "system:nodes")
	}
	return a, os.WriteFile(a.path("tokens.csv"), []byte(lines.String()), 0o600)
}

func nodeUser(node string) string { return "system:node:" + node }

func (a *access) path(name string) string { return filepath.Join(a.dir, name) }

func (a *access) certificates(addresses []string) error {
	from := time.Now().Add(-time.Hour)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "plinth-e2e"}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, err := a.pair("ca", authority, authority, nil)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"},
	}
	for _, ip := range addresses {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(ip))
	}
	if _, err := a.pair("apiserver", server, authority, key); err != nil {
		return err
	}
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return a.key("sa.key", account)
}

// pair writes a key and the certificate for it, signed by the issuer's key; nil is its own.
func (a *access) pair(name string, template, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if issuerKey == nil {
		issuerKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(a.path(name+".crt"), text, 0o644); err != nil {
		return nil, err
	}
	return key, a.key(name+".key", key)
}

func (a *access) key(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubeconfig writes the file with which a user reaches the API server, and holds the authority's certificate itself.
func (a *access) kubeconfig(path, user string) error {
	authority, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: e2e, user: {token: %s}}]
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
current-context: e2e
`, a.server, base64Of(authority), a.tokens[user]), 0o600)
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
