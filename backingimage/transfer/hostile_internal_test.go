package transfer

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestWhoNeverSendsTheRestOfARequestIsNotWaitedFor(t *testing.T) {
	defer func(before time.Duration) { restTime = before }(restTime)
	restTime = 100 * time.Millisecond
	s := &Server{places: make(chan struct{}, 1)}
	for name, answer := range map[string]http.HandlerFunc{
		"refused":  func(w http.ResponseWriter, _ *http.Request) { refuse(w, wrongToken) },
		"no route": http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(s.limited(answer))
			t.Cleanup(server.Close)
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			must(t, err)
			defer conn.Close()
			_, err = fmt.Fprint(conn, "POST /v1/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
			must(t, err)
			must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
			if text, err := io.ReadAll(conn); err != nil {
				t.Errorf("the connection stays open after %q: %v", text, err)
			}
		})
	}
}
