package credential_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

const hidden = "s3cr3t-value"

func TestParseReadsEachKindOfSecret(t *testing.T) {
	for name, c := range map[string]struct {
		data map[string]string
		want http.Header
	}{
		"nothing":     {nil, http.Header{}},
		"basic":       {map[string]string{"username": "u", "password": "p\n"}, http.Header{"Authorization": {"Basic dTpw"}}},
		"bearer":      {map[string]string{"token": "t\r\n"}, http.Header{"Authorization": {"Bearer t"}}},
		"headers":     {map[string]string{"headers": "x-api-key: a b\n\nX-Other:c"}, http.Header{"X-Api-Key": {"a b"}, "X-Other": {"c"}}},
		"object keys": {map[string]string{"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r"}, http.Header{}},
	} {
		got, err := credential.Parse("n/s", bytesOf(c.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		header := http.Header{}
		got.Apply(header)
		if fmt.Sprint(header) != fmt.Sprint(c.want) {
			t.Errorf("%s: headers are %v, want %v", name, header, c.want)
		}
	}
}

func TestParseReadsCertificates(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	c, err := credential.Parse("n/s", map[string][]byte{"ca.crt": ca})
	if err != nil || c.Authorities == nil {
		t.Errorf("got %v, %v", c.Authorities, err)
	}
}

func TestParseRefusesByKeyAndNeverByValue(t *testing.T) {
	for name, c := range map[string]struct {
		data map[string]string
		says string
	}{
		"unknown key":                    {map[string]string{"passwort": hidden}, `key "passwort"`},
		"password alone":                 {map[string]string{"password": hidden}, "without username"},
		"token beside a user":            {map[string]string{"token": hidden, "username": hidden, "password": hidden}, "contradicts username"},
		"a key without its secret":       {map[string]string{"AWS_ACCESS_KEY_ID": hidden}, "AWS_SECRET_ACCESS_KEY"},
		"certificate alone":              {map[string]string{"tls.crt": hidden}, "tls.key"},
		"certificate that is none":       {map[string]string{"tls.crt": hidden, "tls.key": hidden}, "PEM"},
		"authority that is none":         {map[string]string{"ca.crt": hidden}, "PEM"},
		"several lines":                  {map[string]string{"token": hidden + "\nX-Injected: 1"}, "several lines"},
		"header without a colon":         {map[string]string{"headers": hidden}, "Name: value"},
		"header with a control":          {map[string]string{"headers": "X-A: " + hidden + "\x01"}, "Name: value"},
		"header that is ours":            {map[string]string{"headers": "range: " + hidden}, "Range"},
		"key that is no JSON":            {map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": "/etc/" + hidden}, "not JSON"},
		"key of another sort":            {map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": `{"type":"external_account","token_url":"` + hidden + `"}`}, "ambient"},
		"storage account that isn't one": {map[string]string{"AZBLOB_ACCOUNT_NAME": hidden + "/.."}, "lower-case"},
		"storage key that is none":       {map[string]string{"AZBLOB_ACCOUNT_NAME": "acct", "AZBLOB_ACCOUNT_KEY": hidden + "!"}, "base64"},
		"storage key alone":              {map[string]string{"AZBLOB_ACCOUNT_KEY": "c2VjcmV0"}, "AZBLOB_ACCOUNT_NAME"},
		"storage token that is none":     {map[string]string{"AZBLOB_ACCOUNT_NAME": "acct", "AZBLOB_SAS_TOKEN": hidden}, "sig="},
		"storage token beside a key":     {map[string]string{"AZBLOB_ACCOUNT_NAME": "acct", "AZBLOB_ACCOUNT_KEY": "c2VjcmV0", "AZBLOB_SAS_TOKEN": "sig=" + hidden}, "contradicts"},
		"proxy without a host":           {map[string]string{"proxy": hidden}, "proxy"},
		"proxy of an unknown sort":       {map[string]string{"proxy": "gopher://u:" + hidden + "@h"}, "proxy"},
		"proxy that does not parse":      {map[string]string{"proxy": "http://u:" + hidden + "@h:x y"}, "proxy"},
	} {
		_, err := credential.Parse("ns/name", bytesOf(c.data))
		if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "secret ns/name: key ") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), hidden) {
			t.Errorf("%s: the message tells the secret: %v", name, err)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := credential.Parse("n/s", bytesOf(map[string]string{"username": hidden, "password": hidden, "headers": "X-Key: " + hidden, "proxy": "http://u:" + hidden + "@h:1", "AWS_ACCESS_KEY_ID": hidden, "AWS_SECRET_ACCESS_KEY": hidden, ".dockerconfigjson": hidden, "AZBLOB_ACCOUNT_NAME": "acct", "AZBLOB_SAS_TOKEN": "?sig=" + hidden}))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%q %x", c.Password, c.Password), string(text)} {
		if strings.Contains(shown, hidden) || strings.Contains(shown, fmt.Sprintf("%x", hidden)) {
			t.Errorf("printed as %s", shown)
		}
	}
	if again, err := credential.Parse("n/s", c.Data()); err != nil || again.AzureToken.Reveal() != "sig="+hidden {
		t.Errorf("another process reads it as %+v, %v", again, err)
	}
	if c.Password.Reveal() != hidden {
		t.Error("the place that sends it cannot read it")
	}
}

func TestDirectoryKeepsSecretsFromOthers(t *testing.T) {
	dir := t.TempDir() + "/secrets"
	d, err := credential.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, b := credential.Ref{Namespace: "default", Name: "a"}, credential.Ref{Namespace: "apps", Name: "a.b"}
	if _, err := d.Get(t.Context(), a); !backingimage.Is(err, backingimage.NotFound) || !strings.Contains(err.Error(), "plinth secret create a") {
		t.Errorf("a secret that is not there: %v", err)
	}
	for _, ref := range []credential.Ref{a, b, a} {
		if err := d.Put(t.Context(), ref, bytesOf(map[string]string{"token": hidden})); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := d.Get(t.Context(), b); err != nil || string(got["token"]) != hidden {
		t.Errorf("got %s, %v", got, err)
	}
	if refs, err := d.List(t.Context()); err != nil || !slices.Equal(refs, []credential.Ref{b, a}) {
		t.Errorf("listed %v, %v", refs, err)
	}
	mustBePrivate(t, dir)
	for range 2 {
		if err := d.Delete(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
	if refs, err := d.List(t.Context()); err != nil || len(refs) != 1 {
		t.Errorf("listed %v, %v", refs, err)
	}
}

func bytesOf(data map[string]string) map[string][]byte {
	m := map[string][]byte{}
	for k, v := range data {
		m[k] = []byte(v)
	}
	return m
}
