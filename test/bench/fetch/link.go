package main

import (
	"context"
	"io"
	"net"
	"time"
)

// A link stands for a long way to a server: each byte takes half a round trip, and of each connection no more is on its way,
// or on its way to be acknowledged, than a window.
const (
	roundTrip   = 50 * time.Millisecond
	windowBytes = 1 << 20
	parcelBytes = 32 << 10
)

// serveLink leads from a listener to a server until ctx ends.
func serveLink(ctx context.Context, l net.Listener, server string) error {
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer near.Close()
			time.Sleep(roundTrip) // of the handshake
			far, err := net.Dial("tcp", server)
			if err != nil {
				return
			}
			defer far.Close()
			go func() {
				carry(far, near)
				far.Close()
			}()
			carry(near, far)
		}()
	}
}

// parcel is data on its way.
type parcel struct {
	data []byte
	due  time.Time
}

// carry brings what from sends to to, late, until one of them ends.
func carry(to io.Writer, from io.Reader) {
	window := make(chan struct{}, windowBytes/parcelBytes)
	way := make(chan parcel, cap(window))
	go func() {
		defer close(way)
		for {
			window <- struct{}{}
			data := make([]byte, parcelBytes)
			n, err := from.Read(data)
			if n > 0 {
				way <- parcel{data[:n], time.Now().Add(roundTrip / 2)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range way {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			break
		}
		time.AfterFunc(roundTrip/2, func() { <-window })
	}
	for range way { // so that who fills it ends
		<-window
	}
}
