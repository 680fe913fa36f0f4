// Command bench runs the measurements in the folders below it, one after another, and prints one table. Each of them is a
// program that prints a line for each comparison,
//
//	name <TAB> ours <TAB> rival <TAB> ratio <TAB> bound
//
// and only ratios within one run are compared, for machines differ. A bound of "-" is a line for the reader. Bench ends with
// exit code 1 when a ratio is over its bound, or when a program fails.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
)

func main() {
	plinth := flag.String("plinth", "bin/plinth", "the binary to measure")
	only := flag.String("only", "", "run only this `program`: backup, clone, fetch, peers, plan or standalone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *plinth, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// comparison is a line of a program.
type comparison struct{ name, ours, rival, ratio, bound string }

func run(ctx context.Context, plinth, only string) error {
	if os.Geteuid() != 0 {
		return errors.New("it mounts filesystems and attaches loop devices: run it as root")
	}
	dir, err := os.MkdirTemp("", "plinth-bench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	programs := []struct {
		name string
		args []string
	}{{"backup", nil}, {"clone", nil}, {"fetch", nil}, {"peers", nil}, {"plan", nil}, {"standalone", []string{"-plinth", plinth}}}
	var all []comparison
	var failures []error
	for _, p := range programs {
		if only != "" && only != p.name || ctx.Err() != nil {
			continue
		}
		lines, err := measure(ctx, dir, p.name, p.args)
		all = append(all, lines...)
		if err != nil {
			failures = append(failures, err)
		}
	}
	if err := report(all); err != nil {
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// measure builds a program and runs it. What it measured before it failed is returned too.
func measure(ctx context.Context, dir, name string, args []string) ([]comparison, error) {
	fmt.Fprintf(os.Stderr, "measuring %s …\n", name)
	program := filepath.Join(dir, name)
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./test/bench/"+name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	cmd.Stderr = os.Stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	lines := parse(out.String())
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(overBound(lines)) > 0 {
		err = nil // that is why; report says it
	}
	if err != nil {
		return lines, fmt.Errorf("%s: %w", name, err)
	}
	return lines, nil
}

func parse(out string) []comparison {
	var lines []comparison
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 5 {
			lines = append(lines, comparison{f[0], f[1], f[2], f[3], f[4]})
		}
	}
	return lines
}

// overBound returns the names of the comparisons whose ratio is over its bound.
func overBound(lines []comparison) []string {
	var names []string
	for _, c := range lines {
		if c.over() {
			names = append(names, c.name)
		}
	}
	return names
}

func (c comparison) over() bool {
	bound, err := strconv.ParseFloat(c.bound, 64)
	if err != nil {
		return false // a line for the reader
	}
	ratio, err := strconv.ParseFloat(c.ratio, 64)
	return err != nil || ratio > bound
}

func report(lines []comparison) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tPLINTH\tRIVAL\tRATIO\tBOUND\t")
	for _, c := range lines {
		verdict := ""
		if c.over() {
			verdict = "over"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.name, c.ours, c.rival, c.ratio, c.bound, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if over := overBound(lines); len(over) > 0 {
		return fmt.Errorf("over the bound: %s", strings.Join(over, ", "))
	}
	return nil
}
