package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/transfer"
)

// curl measures what curl takes for the file that a dense image is, from a TLS server in this process to a disk of the same
// kind, synced.
func (b *bench) curl(ctx context.Context) (seconds float64, err error) {
	dir, err := emptied(b.dir, "curl")
	if err != nil {
		return 0, err
	}
	d, err := disk.Open(ctx, dir, disk.Options{PoolBytes: 2*b.dense + 1<<30})
	if err != nil {
		return 0, err
	}
	root := string(d.Layout())
	file, to := filepath.Join(root, "file"), filepath.Join(root, "to")
	defer func() {
		out, rerr := exec.Command("rm", "-f", file, to).CombinedOutput()
		if rerr != nil {
			rerr = fmt.Errorf("%w: %s", rerr, out)
		}
		err = errors.Join(err, rerr, d.Close(context.WithoutCancel(ctx)))
	}()
	if err := fill(file, b.dense, b.dense); err != nil {
		return 0, err
	}
	id, err := transfer.OpenIdentity(filepath.Join(b.dir, "curl-key"))
	if err != nil {
		return 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(root)), TLSConfig: &tls.Config{Certificates: []tls.Certificate{id.Certificate()}, NextProtos: []string{"http/1.1"}}}
	go server.ServeTLS(l, "", "") // ends with Close
	defer server.Close()
	began := time.Now()
	out, err := exec.CommandContext(ctx, "sh", "-ec", `curl -skf "$1" -o "$2"; sync "$2"`, "sh", "https://"+l.Addr().String()+"/file", to).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("curl: %w: %s", err, out)
	}
	return since(began), nil
}
