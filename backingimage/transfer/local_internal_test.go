package transfer

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestProgramsOfRootComeWithoutTLSWhereTheyCan(t *testing.T) {
	id, err := OpenIdentity(t.TempDir())
	must(t, err)
	parent, err := os.MkdirTemp("", "") // t.TempDir is too long for a socket's path
	must(t, err)
	defer os.RemoveAll(parent)
	dir := filepath.Join(parent, "agents")
	how := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if shown(r) != "" {
			t.Error("a caller without a certificate has shown a key")
		}
		if r.TLS == nil {
			_, _ = io.WriteString(w, "local")
			return
		}
		_, _ = io.WriteString(w, "TLS")
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := &http.Server{Handler: how}
	defer server.Close()
	go server.Serve(tls.NewListener(l, id.serverConfig())) // ends with Close

	mustCome := func(want string) {
		t.Helper()
		client := NewClient(l.Addr().String(), id.PublicKeyHash(), "uid", "")
		defer client.Close()
		client.Local(dir)
		resp, err := client.do(t.Context(), http.MethodGet, "/", nil, nil)
		must(t, err)
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != want {
			t.Errorf("came by %q (%v), want %q", got, err, want)
		}
	}
	mustCome("TLS") // there is no socket
	local, err := listenLocal(dir, id.PublicKeyHash())
	must(t, err)
	go server.Serve(local) // ends with Close
	mustCome("local")
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("%s can be entered by others than root: %v", dir, info.Mode())
	}

	local.(*net.UnixListener).SetUnlinkOnClose(false) // as a process that is killed leaves it
	must(t, local.Close())
	mustCome("TLS")
	other, err := listenLocal(dir, "other")
	must(t, err)
	defer other.Close()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "other.sock" {
		t.Errorf("left are %v (%v), want other.sock alone", left, err)
	}
	local, err = listenLocal(dir, id.PublicKeyHash())
	must(t, err)
	go server.Serve(local) // ends with Close
	mustCome("local")
}
