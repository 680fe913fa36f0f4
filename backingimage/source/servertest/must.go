// Package servertest runs, for the tests of sources, real servers that they read from (a registry, an S3 server), and breaks the
// connections between.
package servertest

import "testing"

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
