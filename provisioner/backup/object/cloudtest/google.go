// Package cloudtest runs servers that speak what the public clouds' object stores speak, and check who asks.
package cloudtest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage/source/servertest"
	"plinth.dev/plinth/test/plinthtest"
)

// ServiceAccount is one of Google's, with its key.
type ServiceAccount struct {
	JSON string // content of its key file
	key  *rsa.PrivateKey
}

// MustServiceAccount makes a service account's key.
func MustServiceAccount(tb testing.TB) ServiceAccount {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(tb, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(tb, err)
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "plinth", "private_key_id": "k1", "client_email": "plinth@plinth.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://oauth2.googleapis.com/token",
	})
	must(tb, err)
	return ServiceAccount{JSON: string(text), key: key}
}

// signed reports whether a request carries a token that the account signed (RFC 7515, 5.2).
func (a ServiceAccount) signed(r *http.Request) bool {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	at := strings.LastIndexByte(token, '.')
	if at < 0 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(token[at+1:])
	sum := sha256.Sum256([]byte(token[:at]))
	return err == nil && rsa.VerifyPKCS1v15(&a.key.PublicKey, crypto.SHA256, sum[:], signature) == nil
}

// MustGoogle runs a Cloud Storage server with one bucket, which answers whoever has the service account's key, and returns its address.
func MustGoogle(tb testing.TB, bucket string, a ServiceAccount) string {
	tb.Helper()
	dir := tb.TempDir()
	must(tb, os.Mkdir(filepath.Join(dir, bucket), 0o700))
	program := plinthtest.MustTool(tb, "fake-gcs-server")
	address := servertest.MustRun(tb, func(address string) *exec.Cmd {
		host, port, err := net.SplitHostPort(address)
		must(tb, err)
		return exec.Command(program, "-scheme", "http", "-host", host, "-port", port, "-backend", "filesystem", "-filesystem-root", dir, "-log-level", "error")
	})
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.signed(r) {
			http.Error(w, `{"error":{"code":401,"message":"Invalid Credentials"}}`, http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	tb.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

// MustMetadata runs the server at which a machine, or a pod, in Google's cloud asks for a token of the account that it is, and returns its
// address.
func MustMetadata(tb testing.TB, a ServiceAccount) string {
	tb.Helper()
	const what = "plinth.token"
	sum := sha256.Sum256([]byte(what))
	signature, err := rsa.SignPKCS1v15(nil, a.key, crypto.SHA256, sum[:])
	must(tb, err)
	answer, err := json.Marshal(map[string]any{"access_token": what + "." + base64.RawURLEncoding.EncodeToString(signature), "expires_in": 3600, "token_type": "Bearer"})
	must(tb, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if strings.HasSuffix(r.URL.Path, "/token") {
			_, _ = w.Write(answer)
			return
		}
		http.NotFound(w, r)
	}))
	tb.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
