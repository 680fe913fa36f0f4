package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/cmd/internal/program"
)

func newExitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of every plinth command:\n\n")
	for _, e := range program.Meanings {
		fmt.Fprintf(&b, "  %3d  %s\n", e.Code, e.Text)
	}
	return &cobra.Command{Use: "exit-codes", Short: "Exit codes and what they mean", Long: strings.TrimRight(b.String(), "\n")}
}
