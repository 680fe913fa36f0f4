package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
)

// startServer starts the server's process and returns the URLs of the directory that it serves: near, and at the other end of
// a link.
func startServer(ctx context.Context, dir string) (near, far string, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := self(ctx, roleServe, dir)
	if err != nil {
		cancel()
		return "", "", nil, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return "", "", nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return "", "", nil, err
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // killed
	}
	if _, err := fmt.Fscan(bufio.NewReader(out), &near, &far); err != nil {
		stop()
		return "", "", nil, fmt.Errorf("start server: %w", err)
	}
	return "http://" + near + "/", "http://" + far + "/", stop, nil
}

// serve is the server's process. It prints its address, and the link's to it.
func serve(ctx context.Context, dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	link, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr(), link.Addr())
	go func() { _ = serveLink(ctx, link, listener.Addr().String()) }() // until the process ends
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.HandleFunc("/generated/{bytes}", generate)
	server := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { server.Close() })
	return server.Serve(listener)
}

// generate serves an image that is nowhere: 1 MiB of data, then 15 MiB of zeros, and so on.
func generate(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.PathValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	piece := make([]byte, 16<<20)
	random(1).Read(piece[:1<<20])
	for at := int64(0); at < size; at += int64(len(piece)) {
		if _, err := w.Write(piece[:min(int64(len(piece)), size-at)]); err != nil {
			return
		}
	}
}

// random is an endless stream of bytes that do not compress, the same for the same seed.
func random(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }
