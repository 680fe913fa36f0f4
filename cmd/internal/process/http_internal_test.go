package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestWhoNeverSendsARequestsBodyIsNotWaitedFor(t *testing.T) {
	defer func(before time.Duration) { requestTimeout = before }(requestTimeout)
	requestTimeout = 100 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- NewHTTP(address, prometheus.NewRegistry(), func(context.Context) error { return nil }).Run(ctx)
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var conn net.Conn
	for deadline := time.Now().Add(time.Minute); conn == nil; time.Sleep(time.Millisecond) {
		if conn, err = net.Dial("tcp", address); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if text, err := io.ReadAll(conn); err != nil {
		t.Errorf("the connection stays open after %q: %v", text, err)
	}
}
