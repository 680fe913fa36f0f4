package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/reference/cli.md instead of comparing it")

// TestReferenceOfCommands keeps docs/reference/cli.md equal to what the binary's own help says. make generate writes it.
func TestReferenceOfCommands(t *testing.T) {
	const page = "../../docs/reference/cli.md"
	var b strings.Builder
	root := newRootCommand(&cli{})
	root.InitDefaultHelpCmd()
	b.WriteString("# Commands\n\n<!-- Written by make generate from the help of the binary. -->\n\n")
	b.WriteString("Flags of every command:\n\n")
	describeFlags(&b, root.PersistentFlags())
	b.WriteString("\nDurations are written like `90s`, `10m` or `1h`. [Exit codes](exit-codes.md) have a page of their own.\n")
	describe(&b, root)
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(page); err != nil || string(got) != b.String() {
		t.Errorf("docs/reference/cli.md is out of date (%v): run make generate", err)
	}
}

// describe writes a section for each command that does something.
func describe(b *strings.Builder, cmd *cobra.Command) {
	for _, child := range cmd.Commands() {
		if child.Hidden || child.Name() == "help" || child.IsAdditionalHelpTopicCommand() {
			continue
		}
		if child.HasSubCommands() {
			fmt.Fprintf(b, "\n## plinth %s\n\n%s\n", child.Name(), child.Long)
			describeUse(b, child)
			describe(b, child)
			continue
		}
		heading := "##"
		if cmd.HasParent() {
			heading = "###"
		}
		text := child.Long
		if text == "" {
			text = child.Short + "."
		}
		fmt.Fprintf(b, "\n%s %s\n\n%s\n", heading, strings.TrimSuffix(child.UseLine(), " [flags]"), escape.Replace(text))
		describeUse(b, child)
	}
}

// describeUse writes a command's examples and its own flags.
func describeUse(b *strings.Builder, cmd *cobra.Command) {
	if cmd.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
	}
	if cmd.LocalNonPersistentFlags().HasFlags() {
		b.WriteString("\n")
		describeFlags(b, cmd.LocalNonPersistentFlags())
	}
}

// escape keeps Markdown from reading a placeholder as a tag, or a bar as a cell's end.
var escape = strings.NewReplacer("<", "&lt;", "|", `\|`)

func describeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | meaning | default |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		initial := f.DefValue
		if initial == "[]" || initial == "false" || initial == "0" { // as the help has it
			initial = ""
		}
		if initial != "" {
			initial = "`" + initial + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", strings.TrimSpace(name+" "+strings.ToUpper(kind)), escape.Replace(usage), initial)
	})
}
