package source

import (
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"plinth.dev/plinth/backingimage"
)

// ValidateURL checks a download's URL as far as that is possible without asking anyone. Every fault is Invalid and
// has its own message, which names the field (url), the value without its secrets, and the remedy.
func ValidateURL(raw string) error {
	for _, rule := range rawRules {
		if rule.broken(raw) {
			return invalidURL(raw, rule.message)
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return invalidURL(raw, "cannot be parsed; write it as https://host/path and percent-encode what is special in it")
	}
	for _, rule := range parsedRules {
		if rule.broken(u) {
			return invalidURL(raw, rule.message)
		}
	}
	return nil
}

// rawRules are checked on the text, before a parser has had its way with it.
var rawRules = []struct {
	broken  func(string) bool
	message string
}{
	{func(s string) bool { return s == "" }, "is empty; give the image's address as https://host/path"},
	{hasControl, "has a control character (a line break, perhaps); remove it"},
	{func(s string) bool { return strings.TrimSpace(s) != s }, "begins or ends with white space; remove it"},
	{func(s string) bool { return strings.Contains(s, `\`) }, `has a stray backslash; remove it (a URL separates with "/", and "&" needs no escape here)`},
	{func(s string) bool { return strings.HasPrefix(s, "//") }, "has no scheme; write https: before the //"},
}

// parsedRules are checked on the parsed URL, in order.
var parsedRules = []struct {
	broken  func(*url.URL) bool
	message string
}{
	{func(u *url.URL) bool { return u.Scheme == "" }, "has no scheme; write it as https://host/path"},
	{func(u *url.URL) bool { return u.Scheme != "http" && u.Scheme != "https" }, "has a scheme that images cannot be downloaded with; use http or https"},
	{func(u *url.URL) bool { return u.Hostname() == "" }, "names no host; write it as https://host/path"},
	{func(u *url.URL) bool { return u.User != nil }, "holds a user name or a password, which everyone who can read the image could read too; remove it, put both into a secret, and name that in sourceParameters.secret"},
	{func(u *url.URL) bool { return strings.Contains(u.Hostname(), "%") }, "names a network interface of this machine (the zone of an IPv6 address); use an address without one"},
	{func(u *url.URL) bool { return isOddAddress(u.Hostname()) }, "has an address in a form that is read in several ways; write the address as four decimal numbers"},
	{func(u *url.URL) bool { return !validPort(u.Port()) }, "has a port that does not exist; give one from 1 to 65535, or none"},
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

func validPort(port string) bool {
	if port == "" {
		return true
	}
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

func invalidURL(raw, what string) error {
	return backingimage.Errorf(backingimage.Invalid, "url: %q %s", RedactURL(raw), what)
}

// redacted stands for what is left out of a URL.
const redacted = "redacted"

// RedactURL is a URL as it may be shown: without user name and password, and with the values of query parameters
// replaced. It works on text that is no URL as well, and then rather leaves out too much.
func RedactURL(raw string) string {
	raw, _, _ = strings.Cut(raw, "#")
	address, query, hasQuery := strings.Cut(raw, "?")
	if scheme, rest, ok := strings.Cut(address, "//"); ok {
		address = scheme + "//" + withoutUser(rest)
	} else {
		address = withoutUser(address)
	}
	if hasQuery {
		address += "?" + withoutValues(query)
	}
	return shortened(address)
}

// withoutUser replaces everything up to the last @: a password may hold a slash that nobody escaped.
func withoutUser(rest string) string {
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		return redacted + rest[i:]
	}
	if strings.Contains(path, "@") && strings.Contains(authority, ":") && !validPort(portOf(authority)) {
		return redacted + rest[strings.LastIndex(rest, "@"):]
	}
	return rest
}

// portOf is what follows the last colon of an authority; it need not be a number.
func portOf(authority string) string { return authority[strings.LastIndex(authority, ":")+1:] }

func withoutValues(query string) string {
	parameters := strings.Split(query, "&")
	for i, p := range parameters {
		if key, _, found := strings.Cut(p, "="); found {
			parameters[i] = key + "=" + redacted
		} else {
			parameters[i] = redacted
		}
	}
	return strings.Join(parameters, "&")
}
