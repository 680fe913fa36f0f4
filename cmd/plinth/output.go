package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"plinth.dev/plinth/backingimage"
)

// output is the flag -o: how a command prints what it found. Tables are for people, with sizes like 2.1 GiB; json and yaml
// have the objects exactly as the API has them; name has a name a line, for scripts.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
	outputYAML  output = "yaml"
	outputName  output = "name"
)

var outputs = []string{string(outputTable), string(outputJSON), string(outputYAML), string(outputName)}

// Set, String and Type make output a flag's value.
func (o *output) Set(s string) error {
	for _, known := range outputs {
		if s == known {
			*o = output(s)
			return nil
		}
	}
	return fmt.Errorf("it must be one of %s", strings.Join(outputs, ", "))
}
func (o *output) String() string { return string(*o) }
func (*output) Type() string     { return "format" }

func (o *output) addFlag(cmd *cobra.Command) {
	*o = outputTable
	cmd.Flags().VarP(o, "output", "o", "how to print: "+strings.Join(outputs, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
}

// print prints object, or its names, or calls table.
func (o *output) print(w io.Writer, object any, names []string, table func() error) error {
	switch *o {
	case outputJSON:
		b, err := json.MarshalIndent(object, "", "  ")
		if err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		_, err = fmt.Fprintln(w, string(b))
		return err
	case outputYAML:
		b, err := yaml.Marshal(object)
		if err != nil {
			return fmt.Errorf("print YAML: %w", err)
		}
		_, err = w.Write(b)
		return err
	case outputName:
		for _, n := range names {
			if _, err := fmt.Fprintln(w, n); err != nil {
				return err
			}
		}
		return nil
	case outputTable:
		return table()
	}
	return backingimage.Errorf(backingimage.Invalid, "unknown output format %q: use one of %s", *o, strings.Join(outputs, ", "))
}

// printTable prints rows in columns. The columns that are empty in every row are left out.
func printTable(w io.Writer, header []string, rows [][]string) error {
	used := make([]bool, len(header))
	for _, row := range rows {
		for i, cell := range row {
			used[i] = used[i] || cell != ""
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		var cells []string
		for i, cell := range row {
			if used[i] {
				cells = append(cells, oneLine(cell))
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// field is a line of a show command; one with an empty value is not printed.
type field struct{ name, value string }

// printFields prints a thing's fields, one a line, values lined up below each other.
func printFields(w io.Writer, fields ...field) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		if _, err := fmt.Fprintf(tw, "%s:\t%s\n", f.name, oneLine(f.value)); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
