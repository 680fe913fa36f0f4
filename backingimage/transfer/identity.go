package transfer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// keyFile is the agent's private key in its directory.
const keyFile = "key.pem"

// Identity is the key of an agent, by which clients know it.
type Identity struct {
	certificate tls.Certificate
	hash        string
}

// OpenIdentity reads the key in a directory, and makes both where they are missing: the directory 0700, the key 0600 and
// durable. Corrupt when there is a key that cannot be read.
func OpenIdentity(dir string) (*Identity, error) {
	key, err := openKey(dir)
	if err != nil {
		return nil, fmt.Errorf("open the agent's identity: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the agent's public key: %w", err)
	}
	der, err := selfSigned(key)
	if err != nil {
		return nil, fmt.Errorf("make the agent's certificate: %w", err)
	}
	sum := sha256.Sum256(spki)
	return &Identity{certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hash: hex.EncodeToString(sum[:])}, nil
}

// PublicKeyHash is the SHA-256 of the public key (SubjectPublicKeyInfo), in hexadecimal.
func (i *Identity) PublicKeyHash() string { return i.hash }

// Certificate is the key with the certificate that shows it.
func (i *Identity) Certificate() tls.Certificate { return i.certificate }

func openKey(dir string) (*ecdsa.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, backingimage.Errorf(backingimage.Corrupt, "%s holds no key; remove it, and the agent makes a new one", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Corrupt, "%s holds no key that can be read (%w); remove it, and the agent makes a new one", path, err)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// certificateLife is so long because nobody looks at it: what counts is the key.
const certificateLife = 100 * 365 * 24 * time.Hour

func selfSigned(key *ecdsa.PrivateKey) ([]byte, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "plinth agent"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(certificateLife),
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// serverConfig is how an agent speaks TLS. HTTP/2 is not offered: one long stream is what it is slowest at. A client may show a
// certificate: whether its key is a peer's is looked up with each request.
func (i *Identity) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.certificate}, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.RequestClientCert, // no authority signs it; TLS itself proves that the client has the key
	}
}

// keyHash is the hash of a certificate's public key, see Identity.PublicKeyHash.
func keyHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// pinnedConfig accepts the one server whose public key has the hash.
func pinnedConfig(hash string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // no authority signs an agent's key: VerifyConnection compares the key itself
		VerifyConnection: func(s tls.ConnectionState) error {
			if subtle.ConstantTimeCompare([]byte(keyHash(s.PeerCertificates[0])), []byte(hash)) != 1 {
				return backingimage.Errorf(backingimage.Precondition, "the server has another key than the API says that this agent has")
			}
			return nil
		},
	}
}
