// Package sourcetest has what sources meet on a network, for tests: a name server, a proxy, certificates. All of it is real
// and on loopback.
package sourcetest

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server. Each look-up of a name's IPv4 addresses gives the next of its answers, the last one for ever; a name
// without answers does not exist.
type DNS struct {
	mu      sync.Mutex
	answers map[string][]netip.Addr
	conn    net.PacketConn
}

// MustDNS starts a name server until the test ends. The answers are addresses, by name.
func MustDNS(tb testing.TB, answers map[string][]string) *DNS {
	tb.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(tb, err)
	tb.Cleanup(func() { conn.Close() })
	d := &DNS{answers: map[string][]netip.Addr{}, conn: conn}
	for name, list := range answers {
		for _, a := range list {
			d.answers[name] = append(d.answers[name], netip.MustParseAddr(a))
		}
	}
	go d.serve()
	return d
}

// Resolver asks this server and nobody else.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "udp", d.conn.LocalAddr().String())
	}}
}

func (d *DNS) serve() {
	buffer := make([]byte, 1500)
	for {
		n, from, err := d.conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		if answer, err := d.answer(buffer[:n]); err == nil {
			_, _ = d.conn.WriteTo(answer, from) // who does not hear asks again
		}
	}
}

// answer is the message that answers a message.
func (d *DNS) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, err
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	q := m.Questions[0]
	addr, found := d.next(strings.TrimSuffix(q.Name.String(), "."), q.Type == dnsmessage.TypeA)
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 0}
	switch {
	case !found:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && addr.Is4():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case q.Type == dnsmessage.TypeAAAA && addr.Is6():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	}
	return m.Pack()
}

// next returns a name's present answer, and goes on to the next one if use is set.
func (d *DNS) next(name string, use bool) (netip.Addr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.answers[name]
	if len(list) == 0 {
		return netip.Addr{}, false
	}
	if use && len(list) > 1 {
		d.answers[name] = list[1:]
	}
	return list[0], true
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
