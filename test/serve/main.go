// Command serve serves a directory over HTTP on loopback, for trying images without a web server.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	dir := flag.String("dir", ".", "`directory` to serve")
	listen := flag.String("listen", "127.0.0.1:8099", "loopback `address`; port 0 takes a free one")
	flag.Parse()
	if err := serve(*dir, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func serve(dir, listen string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/ serves %s\n", l.Addr(), dir)
	server := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(l)
}
