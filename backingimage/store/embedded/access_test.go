package embedded_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage/store/embedded"
)

func mustRead(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func file(name, content string) fs.FS { return fstest.MapFS{name: {Data: []byte(content)}} }

func TestAccess(t *testing.T) {
	defer embedded.SetRestTime(100 * time.Millisecond)()
	before := listeningPorts(t)
	dir := filepath.Join(tempDir(t), "data")
	s := mustServe(t, embedded.Options{Dir: dir})

	t.Run("only the API listens on a TCP port", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.RESTConfig().Host, "https://"))
		var opened []string
		for p := range listeningPorts(t) {
			if !before[p] {
				opened = append(opened, p)
			}
		}
		if len(opened) != 1 || opened[0] != port {
			t.Errorf("open ports: %v; want %s", opened, port)
		}
	})
	t.Run("a stranger who never sends a request's body loses the connection", func(t *testing.T) {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.RESTConfig().Host, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprint(conn, "POST /apis HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if text, err := io.ReadAll(conn); err != nil {
			t.Errorf("it stays open after %q: %v", text, err)
		}
	})
	for name, token := range map[string]string{
		"nobody": "", "a wrong token": "AAAAAAAAAAAAAAAAAAAAAAAAAA", "half the token": s.RESTConfig().BearerToken[:13],
	} {
		t.Run(name+" gets 401 everywhere", func(t *testing.T) {
			for _, path := range []string{"/apis/plinth.dev/v1alpha1/backingimages", "/api", "/apis", "/openapi/v2", "/version", "/healthz", "/nothing"} {
				if got := status(t, s.RESTConfig(), token, path); got != http.StatusUnauthorized {
					t.Errorf("%s: got %d", path, got)
				}
			}
		})
	}
	t.Run("the token opens everything", func(t *testing.T) {
		for _, path := range []string{"/apis/plinth.dev/v1alpha1/backingimages", "/api", "/apis", "/openapi/v2", "/version", "/healthz"} {
			if got := status(t, s.RESTConfig(), s.RESTConfig().BearerToken, path); got != http.StatusOK {
				t.Errorf("%s: got %d", path, got)
			}
		}
	})
	t.Run("others can neither read the secrets nor reach etcd", func(t *testing.T) {
		for path, want := range map[string]fs.FileMode{
			".": fs.ModeDir | 0o700, "kubeconfig": 0o600, "control-plane": fs.ModeDir | 0o700,
			"control-plane/token": 0o600, "control-plane/join": fs.ModeDir | 0o700, "control-plane/join/api": 0o600, "control-plane/tls.pem": 0o600, "control-plane/etcd": fs.ModeDir | 0o700,
		} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil || info.Mode() != want {
				t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
			}
		}
	})
}

// status asks as a client that has the CA and this token.
func status(t testing.TB, cfg *rest.Config, token, path string) int {
	t.Helper()
	cfg = rest.CopyConfig(cfg)
	cfg.BearerToken = token
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(cfg.Host + path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// listeningPorts of this process, from the kernel.
func listeningPorts(t testing.TB) map[string]bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]bool{}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "socket:[") {
			ours[strings.Trim(link, "socket:[]")] = true
		}
	}
	const listen = "0A"
	ports := map[string]bool{}
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		for _, line := range strings.Split(mustRead(t, table), "\n") {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == listen && ours[f[9]] {
				var port int
				if _, err := fmt.Sscanf(f[1][strings.LastIndex(f[1], ":")+1:], "%X", &port); err != nil {
					t.Fatal(err)
				}
				ports[fmt.Sprint(port)] = true
			}
		}
	}
	return ports
}

func TestCertificate(t *testing.T) {
	dir := tempDir(t)
	clock := clocktesting.NewFakePassiveClock(time.Now().Add(-9 * 365 * 24 * time.Hour).Add(-24 * time.Hour))
	old := mustServe(t, embedded.Options{Dir: dir, Clock: clock})
	mustStop(t, old)
	s := mustServe(t, embedded.Options{Dir: dir})

	t.Run("is replaced in its last year", func(t *testing.T) {
		if string(s.RESTConfig().CAData) == string(old.RESTConfig().CAData) {
			t.Error("it is the old one")
		}
	})
	t.Run("leaves the token as it is", func(t *testing.T) {
		if s.RESTConfig().BearerToken != old.RESTConfig().BearerToken {
			t.Error("the token changed")
		}
	})
	t.Run("lives long and is ECDSA", func(t *testing.T) {
		block, _ := pem.Decode(s.RESTConfig().CAData)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || c.PublicKeyAlgorithm != x509.ECDSA || time.Until(c.NotAfter) < 9*365*24*time.Hour {
			t.Errorf("got %v until %v, %v", c.PublicKeyAlgorithm, c.NotAfter, err)
		}
	})
	t.Run("is what the kubeconfig trusts", func(t *testing.T) {
		if _, err := mustClient(t, s.RESTConfig()).Images.List(testContext(t), metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func TestPort(t *testing.T) {
	dir := tempDir(t)
	first := mustServe(t, embedded.Options{Dir: dir})
	was := first.RESTConfig().Host
	mustStop(t, first)
	taken, err := net.Listen("tcp", strings.TrimPrefix(was, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := mustServe(t, embedded.Options{Dir: dir})
	t.Run("is another one when the last is taken", func(t *testing.T) {
		if s.RESTConfig().Host == was {
			t.Error("it is the same")
		}
	})
	t.Run("is the one in the kubeconfig", func(t *testing.T) {
		mustContain(t, mustRead(t, s.Kubeconfig()), s.RESTConfig().Host)
	})
}
