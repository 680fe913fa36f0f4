package e2e

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// comparison of Plinth with a rival within this run. Without a bound it is for the reader.
type comparison struct {
	what, ours, rival string
	ratio, bound      float64
}

func (c comparison) over() bool { return c.bound > 0 && c.ratio > c.bound }

// comparisons are those of all benchmarks, in their order.
type comparisons struct {
	mu  sync.Mutex
	all []comparison
}

var compared comparisons

// times adds the comparison of two durations, and says it at once.
func (s *comparisons) times(t testing.TB, what string, ours, rival time.Duration, bound float64) {
	s.add(t, comparison{what: what, ours: milliseconds(ours), rival: milliseconds(rival), ratio: ours.Seconds() / rival.Seconds(), bound: bound})
}

func (s *comparisons) add(t testing.TB, c comparison) {
	t.Logf("%s: %s against %s", c.what, c.ours, c.rival)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

// report prints the table of "make bench", and is false when a ratio is over its bound.
func (s *comparisons) report(out io.Writer) bool {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tPLINTH\tRIVAL\tRATIO\tBOUND\t")
	for _, c := range s.all {
		bound, verdict := "-", ""
		if c.bound > 0 {
			bound = fmt.Sprintf("%.2f", c.bound)
		}
		if c.over() {
			verdict = "over"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%s\t%s\n", c.what, c.ours, c.rival, c.ratio, bound, verdict)
	}
	w.Flush()
	return !slices.ContainsFunc(s.all, comparison.over)
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
