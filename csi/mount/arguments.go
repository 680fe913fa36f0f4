package mount

import (
	"errors"
	"strings"
)

// splitArguments splits a line as a shell does, with its quotes and backslashes, and expands nothing.
func splitArguments(line string) ([]string, error) {
	var (
		args    []string
		word    strings.Builder
		begun   bool // word is an argument, perhaps an empty one
		quote   rune // the open quote, or 0
		escaped bool
	)
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if begun {
				args = append(args, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote or a backslash is not closed")
	}
	if begun {
		args = append(args, word.String())
	}
	return args, nil
}
