package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/cmd/internal/program"
)

func newSecretCreateCommand(c *cli) *cobra.Command {
	var p secretPlace
	var files []string
	var envFile string
	cmd := &cobra.Command{
		Use:   "create NAME --from-file KEY=FILE...",
		Short: "Make a secret, or replace one",
		Long: "Create makes a secret of the content of files, so that nothing of it stands in a command line or a shell's history. FILE may be -\n" +
			"for standard input. A secret of that name that exists is replaced.\n\nKeys: " + strings.Join(credential.Keys(), ", ") + ".",
		Example: "  plinth secret create registry --from-file username=./user --from-file password=./password\n" +
			"  pass show token | plinth secret create mirror --from-file token=-",
		Args: program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.createSecret(cmd.Context(), p, args[0], files, envFile, cmd.InOrStdin())
		},
	}
	p.addFlags(cmd)
	cmd.Flags().StringArrayVar(&files, "from-file", nil, "`KEY=FILE`: the key's value is the file's content; may be repeated")
	cmd.Flags().StringVar(&envFile, "from-env-file", "", "`file` with a line KEY=VALUE for each key")
	return cmd
}

func (c *cli) createSecret(ctx context.Context, p secretPlace, name string, files []string, envFile string, stdin io.Reader) error {
	ref, err := credential.NewRef(p.namespace, name)
	if err != nil {
		return err
	}
	data, err := secretData(files, envFile, stdin)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return backingimage.Errorf(backingimage.Invalid, "--from-file is missing: say what the secret holds, like --from-file token=./token")
	}
	if _, err := credential.Parse(ref.String(), data); err != nil {
		return err
	}
	store, err := p.open(c)
	if err != nil {
		return err
	}
	if err := store.Put(ctx, ref, data); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "secret %s written (%s)\n", ref, strings.Join(slices.Sorted(maps.Keys(data)), ", "))
	return err
}

// secretData reads what the flags name.
func secretData(files []string, envFile string, stdin io.Reader) (map[string][]byte, error) {
	data := map[string][]byte{}
	if envFile != "" {
		if err := readEnvFile(data, envFile); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		key, path, found := strings.Cut(f, "=")
		if !found || key == "" || path == "" {
			return nil, backingimage.Errorf(backingimage.Invalid, "--from-file: give KEY=FILE, like token=./token") // the value may be a secret, given by mistake
		}
		if _, twice := data[key]; twice {
			return nil, backingimage.Errorf(backingimage.Invalid, "--from-file: key %s is given twice", key)
		}
		value, err := readSecretFile(path, stdin)
		if err != nil {
			return nil, backingimage.Errorf(backingimage.Invalid, "--from-file: the value of key %s cannot be read from the file that is named: %w", key, err)
		}
		data[key] = value
	}
	return data, nil
}

// readEnvFile reads lines KEY=VALUE; empty ones, and those that begin with #, say nothing.
func readEnvFile(data map[string][]byte, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return backingimage.Errorf(backingimage.Invalid, "--from-env-file: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if _, twice := data[key]; twice || !found {
			return backingimage.Errorf(backingimage.Invalid, "--from-env-file %s: line %d is not of the form KEY=VALUE, with each key once", path, n)
		}
		data[key] = []byte(value)
	}
	return nil
}

// maxSecretBytes is what Kubernetes allows, too.
const maxSecretBytes = 1 << 20

func readSecretFile(path string, stdin io.Reader) ([]byte, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err.(*os.PathError).Err // the path may be the secret itself, given by mistake
		}
		defer f.Close()
		stdin = f
	}
	value, err := io.ReadAll(io.LimitReader(stdin, maxSecretBytes+1))
	if err == nil && len(value) > maxSecretBytes {
		err = fmt.Errorf("it has more than %d bytes", maxSecretBytes)
	}
	return value, err
}
