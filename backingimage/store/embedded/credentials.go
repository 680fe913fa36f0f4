package embedded

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"time"

	"plinth.dev/plinth/backingimage/durable"
)

// A certificate lives for ten years and is replaced in its last one, at a start. Nobody but us needs to trust it, and a
// server that runs for nine years without a restart is somebody's deliberate choice.
const (
	certificateLife  = 10 * 365 * 24 * time.Hour
	certificateRenew = 365 * 24 * time.Hour
)

// minTokenLength keeps an empty or truncated file from becoming a password.
const minTokenLength = 20

// credentials are what client and server know of each other.
type credentials struct {
	token       string
	certificate []byte // PEM, the server's certificate; it is its own authority
	pair        tls.Certificate
}

// loadCredentials reads what an earlier run left, and makes what is missing or worn out.
func (s *Server) loadCredentials(context.Context) error {
	token, err := loadToken(s.dir.token)
	if err != nil {
		return err
	}
	pair, certificate, err := loadCertificate(s.dir.tls, s.hosts(), s.opts.Clock.Now())
	if err != nil {
		return err
	}
	s.credentials = credentials{token: token, certificate: certificate, pair: pair}
	return nil
}

// hosts are the names by which clients call the server.
func (s *Server) hosts() []string {
	own, others := s.opts.places()
	all := []string{own, others, "localhost", "127.0.0.1", "::1"}
	slices.Sort(all)
	return slices.Compact(all)
}

func loadToken(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read token: %w", err)
	}
	if token := string(bytes.TrimSpace(content)); len(token) >= minTokenLength {
		return token, nil
	}
	token := rand.Text()
	if err := durable.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep token: %w", err)
	}
	return token, nil
}

// loadCertificate returns the key and certificate in the file, and makes new ones when they are missing, unreadable,
// about to expire, or not for these hosts. A key that is there stays, so that who knows the server by an older certificate goes on
// trusting it for as long as that one lives.
func loadCertificate(path string, hosts []string, now time.Time) (tls.Certificate, []byte, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return tls.Certificate{}, nil, fmt.Errorf("read certificate: %w", err)
	}
	old, err := tls.X509KeyPair(content, content)
	if err == nil && usable(old.Leaf, hosts, now) {
		return old, certificatePEM(old), nil
	}
	content, err = newCertificate(old.PrivateKey, hosts, now)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("make certificate: %w", err)
	}
	if err := durable.WriteFile(path, content, 0o600); err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("keep certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(content, content)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read new certificate: %w", err)
	}
	return pair, certificatePEM(pair), nil
}

func usable(c *x509.Certificate, hosts []string, now time.Time) bool {
	for _, host := range hosts {
		if c.VerifyHostname(host) != nil {
			return false
		}
	}
	return c.IsCA && now.After(c.NotBefore) && now.Add(certificateRenew).Before(c.NotAfter)
}

func certificatePEM(pair tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
}

// newCertificate returns a key and its self-signed certificate as one PEM file, so that one rename replaces both. The key is the
// old one if that is ours.
func newCertificate(old any, hosts []string, now time.Time) ([]byte, error) {
	key, ours := old.(*ecdsa.PrivateKey)
	if !ours {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "plinth"},
		NotBefore:             now.Add(-time.Hour), // a client's clock may be a little behind
		NotAfter:              now.Add(certificateLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, // of later certificates of the same key
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}
