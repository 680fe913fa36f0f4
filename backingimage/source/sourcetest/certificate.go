package sourcetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Certificate is a certificate that vouches for itself, for servers and clients at 127.0.0.1.
type Certificate struct {
	TLS      tls.Certificate
	PEM, Key []byte // in PEM
}

// MustCertificate makes a certificate that ends at a time.
func MustCertificate(tb testing.TB, end time.Time) Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: end.Add(-48 * time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(tb, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	must(tb, err)
	c := Certificate{
		PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}),
	}
	c.TLS, err = tls.X509KeyPair(c.PEM, c.Key)
	must(tb, err)
	return c
}

// MustServeTLS serves over TLS until the test ends, with a certificate, and wants the clients' kind of proof.
func MustServeTLS(tb testing.TB, c Certificate, clients tls.ClientAuthType, h http.Handler) *httptest.Server {
	tb.Helper()
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{c.TLS}, ClientAuth: clients}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // failing handshakes are what is tested
	server.StartTLS()
	tb.Cleanup(server.Close)
	tb.Cleanup(server.CloseClientConnections)
	return server
}
