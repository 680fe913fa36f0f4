package source_test

import (
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

func TestValidateURLAccepts(t *testing.T) {
	for _, value := range []string{
		"http://example.com/a.img", "https://example.com:8443/a%20b.qcow2?token=x&y", "http://[2001:db8::1]/x", "https://10.0.0.1/", "HTTPS://example.com/x#part",
		"http://example.com/a@b", "http://127.0.0.1/", "http://0x7f.1.example/", "http://1.example.com/", "http://0xg/",
	} {
		if err := source.ValidateURL(value); err != nil {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestValidateURLNamesEachFault(t *testing.T) {
	seen := map[string]string{}
	for value, says := range map[string]string{
		"":                                 "is empty",
		"//example.com/a":                  "before the //",
		"example.com/a":                    "no scheme",
		"ftp://example.com/a":              "use http or https",
		"file:///etc/passwd":               "use http or https ",
		"http:///a":                        "names no host",
		"http:////example.com/a":           "names no host ",
		"https:a":                          "names no host  ",
		"https://user:hunter2@host/a":      "remove it",
		"https://user@host/a":              "sourceParameters.secret",
		"https://:hunter2@host/a":          "password",
		"http://[fe80::1%25eth0]/a":        "network interface",
		"http://2130706433/":               "four decimal numbers",
		"http://0177.0.0.1/":               "four decimal numbers ",
		"http://0x7f.1/":                   "four decimal numbers  ",
		"http://0x7f000001/":               "four decimal numbers   ",
		"http://127.1/":                    "four decimal numbers    ",
		"http://127.0.0.1./":               "four decimal numbers     ",
		"http://127.0.0.0X1/":              "four decimal numbers      ",
		"http://127.0.0.256/":              "four decimal numbers       ",
		`https://host\/a`:                  "backslash",
		"https://host/a\nb":                "control character",
		" https://host/a":                  "white space",
		"https://host:70000/a":             "port",
		"https://host:hunter2/@elsewhere/": "cannot be parsed",
		"https://host/%zz":                 "cannot be parsed ",
	} {
		err := source.ValidateURL(value)
		if !backingimage.Is(err, backingimage.Invalid) || !strings.HasPrefix(err.Error(), "url: ") || !strings.Contains(err.Error(), strings.TrimSpace(says)) {
			t.Errorf("%q: got %v, want %q", value, err, says)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the message tells the secret: %v", value, err)
		}
		seen[says] = err.Error()
	}
}

func TestRedactURLLeavesOutSecrets(t *testing.T) {
	for value, want := range map[string]string{
		"https://host/a?X-Signature=hunter2&flag&Expires=1#x": "https://host/a?X-Signature=redacted&redacted&Expires=redacted",
		"https://user:hunter2@host/a":                         "https://redacted@host/a",
		"https://user:hun/ter2@host/a":                        "https://redacted@host/a",
		"user:hunter2@host/a":                                 "redacted@host/a",
		"https://host:8080/a@b":                               "https://host:8080/a@b",
	} {
		if got := source.RedactURL(value); got != want {
			t.Errorf("%q: got %q", value, got)
		}
	}
}
