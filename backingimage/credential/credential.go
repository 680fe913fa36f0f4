// Package credential holds what proves to a source who asks: a password, a token, headers, a client certificate, the keys of an
// object store. Images name a credential by reference (secret, secret-namespace); its content is read when a fetch begins
// and is kept nowhere else.
//
// A Credential is made from a secret's keys, which carry the names that Kubernetes' own types of secret and Longhorn's
// backup secrets use, so that secrets people have already can be named. Secrets live in a Store: a directory that only
// root reads (Directory), or Kubernetes.
//
// No value of this package prints what it holds: neither in an error nor through fmt or JSON.
package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"plinth.dev/plinth/backingimage"
)

// Secret is text that is not to be seen: however it is printed, it is "redacted".
type Secret string

const redacted = "redacted"

// String and GoString keep the text from every verb of fmt, MarshalText from every encoder.
func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Reveal returns the text itself, for the place that sends it.
func (s Secret) Reveal() string { return string(s) }

// Credential is what a secret says; the zero Credential proves nothing.
type Credential struct {
	Username, Password Secret            // HTTP basic authentication
	Token              Secret            // HTTP bearer authentication
	Headers            map[string]Secret // further HTTP headers, by canonical name
	Certificate        *tls.Certificate  // with which the client shows itself
	Authorities        *x509.CertPool    // that may vouch for the server, beside the system's; nil for none
	Proxy              Secret            // URL of the proxy, perhaps with its login
	AccessKeyID        Secret            // of an S3 account
	SecretAccessKey    Secret
	SessionToken       Secret
	Endpoint           string // URL of an S3 server that is not Amazon's
	Region             string
	GoogleCredentials  Secret // JSON of a service account's key, or Ambient
	GoogleEndpoint     string // URL of a Cloud Storage server that is not Google's
	AzureAccount       string // name of a storage account
	AzureKey           Secret // of the account, in base64
	AzureToken         Secret // a shared access signature
	AzureEndpoint      string // URL of a Blob Storage server that is not Azure's; the account's name is the first part of its paths
	DockerConfig       Secret // content of a .dockerconfigjson
	Backup             Secret // with which backups are encrypted

	data func() map[string][]byte // a function, so that nothing prints it
}

// Ambient is what GoogleCredentials holds when this machine, or the pod, has an identity of its own that is to be used.
const Ambient = "ambient"

// Data is what the Credential was parsed from, for another process of ours to parse.
func (c Credential) Data() map[string][]byte {
	if c.data == nil {
		return nil
	}
	return c.data()
}

// Keys of a secret that Parse reads.
const (
	KeyUsername     = "username" // as in kubernetes.io/basic-auth
	KeyPassword     = "password"
	KeyToken        = "token"
	KeyHeaders      = "headers" // a header a line: Name: value
	KeyCertificate  = "tls.crt" // as in kubernetes.io/tls
	KeyPrivateKey   = "tls.key"
	KeyAuthorities  = "ca.crt"
	KeyProxy        = "proxy"
	KeyAccessKeyID  = "AWS_ACCESS_KEY_ID" // as in Longhorn's backup secrets
	KeySecretKey    = "AWS_SECRET_ACCESS_KEY"
	KeySessionToken = "AWS_SESSION_TOKEN"
	KeyEndpoint     = "AWS_ENDPOINTS"
	KeyRegion       = "AWS_REGION"
	KeyAWSCert      = "AWS_CERT"                       // another name of ca.crt
	KeyGoogle       = "GOOGLE_APPLICATION_CREDENTIALS" // as in VolSync's secrets for restic: the JSON itself
	KeyGoogleServer = "GOOGLE_STORAGE_ENDPOINT"
	KeyAzureAccount = "AZBLOB_ACCOUNT_NAME" // as in Longhorn's backup secrets
	KeyAzureKey     = "AZBLOB_ACCOUNT_KEY"
	KeyAzureToken   = "AZBLOB_SAS_TOKEN"
	KeyAzureServer  = "AZBLOB_ENDPOINT"
	KeyAzureCert    = "AZBLOB_CERT"       // another name of ca.crt
	KeyDockerConfig = ".dockerconfigjson" // as in kubernetes.io/dockerconfigjson
	KeyBackup       = "PLINTH_BACKUP_KEY" // 32 bytes in base64 or hexadecimal
)

// readers set what each key says.
var readers = map[string]func(*Credential, []byte) error{
	KeyUsername:     func(c *Credential, v []byte) error { return line(&c.Username, v) },
	KeyPassword:     func(c *Credential, v []byte) error { return line(&c.Password, v) },
	KeyToken:        func(c *Credential, v []byte) error { return line(&c.Token, v) },
	KeyHeaders:      readHeaders,
	KeyCertificate:  func(*Credential, []byte) error { return nil }, // with its key, in Parse
	KeyPrivateKey:   func(*Credential, []byte) error { return nil },
	KeyAuthorities:  readAuthorities,
	KeyAWSCert:      readAuthorities,
	KeyProxy:        readProxy,
	KeyAccessKeyID:  func(c *Credential, v []byte) error { return line(&c.AccessKeyID, v) },
	KeySecretKey:    func(c *Credential, v []byte) error { return line(&c.SecretAccessKey, v) },
	KeySessionToken: func(c *Credential, v []byte) error { return line(&c.SessionToken, v) },
	KeyEndpoint:     func(c *Credential, v []byte) error { c.Endpoint = string(bytes.TrimSpace(v)); return nil },
	KeyRegion:       func(c *Credential, v []byte) error { c.Region = string(bytes.TrimSpace(v)); return nil },
	KeyGoogle:       readGoogle,
	KeyGoogleServer: func(c *Credential, v []byte) error { c.GoogleEndpoint = string(bytes.TrimSpace(v)); return nil },
	KeyAzureAccount: readAzureAccount,
	KeyAzureKey:     readAzureKey,
	KeyAzureToken:   readAzureToken,
	KeyAzureServer:  func(c *Credential, v []byte) error { c.AzureEndpoint = string(bytes.TrimSpace(v)); return nil },
	KeyAzureCert:    readAuthorities,
	KeyDockerConfig: func(c *Credential, v []byte) error { c.DockerConfig = Secret(v); return nil },
	KeyBackup:       func(c *Credential, v []byte) error { return line(&c.Backup, v) },
}

// Keys are the names that Parse knows, sorted.
func Keys() []string { return slices.Sorted(maps.Keys(readers)) }

// Parse reads a secret's keys. Invalid when a key is not known, contradicts another, or has a value that cannot be read; the
// message names the key and never the value. name is how the message calls the secret.
func Parse(name string, data map[string][]byte) (Credential, error) {
	c := Credential{data: func() map[string][]byte { return data }}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		read, known := readers[key]
		if !known {
			return Credential{}, invalid(name, key, "is not a key that Plinth reads; it reads %s", strings.Join(Keys(), ", "))
		}
		if err := read(&c, data[key]); err != nil {
			return Credential{}, invalid(name, key, "%v", err)
		}
	}
	return c, c.check(name, data)
}

// check reads what takes two keys, and refuses what contradicts itself.
func (c *Credential) check(name string, data map[string][]byte) error {
	certificate, hasCertificate := data[KeyCertificate]
	key, hasKey := data[KeyPrivateKey]
	switch {
	case c.Token != "" && c.Username != "":
		return invalid(name, KeyToken, "contradicts %s: keep one", KeyUsername)
	case (c.Username == "") != (c.Password == "") && c.Username == "":
		return invalid(name, KeyPassword, "is given without %s", KeyUsername)
	case (c.AccessKeyID == "") != (c.SecretAccessKey == ""):
		return invalid(name, KeyAccessKeyID, "and %s go together: give both", KeySecretKey)
	case c.AzureKey != "" && c.AzureToken != "":
		return invalid(name, KeyAzureToken, "contradicts %s: keep one", KeyAzureKey)
	case (c.AzureKey != "" || c.AzureToken != "") && c.AzureAccount == "":
		return invalid(name, KeyAzureAccount, "is missing: give the name of the storage account")
	case hasCertificate != hasKey:
		return invalid(name, KeyCertificate, "and %s go together: give both", KeyPrivateKey)
	case hasCertificate:
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return invalid(name, KeyCertificate, "and %s are not a certificate and its key in PEM", KeyPrivateKey)
		}
		c.Certificate = &pair
	}
	return nil
}

// line takes a value of one line; the line break that editors leave at its end is not part of it.
func line(to *Secret, value []byte) error {
	text := strings.TrimRight(string(value), "\r\n")
	if strings.ContainsAny(text, "\r\n\x00") {
		return fmt.Errorf("has several lines; give one")
	}
	*to = Secret(text)
	return nil
}

func readHeaders(c *Credential, value []byte) error {
	c.Headers = map[string]Secret{}
	for text := range strings.Lines(string(value)) {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		name, content, found := strings.Cut(text, ":")
		content = strings.TrimSpace(content)
		if !found || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(content) {
			return fmt.Errorf("has a line that is no header; write one a line, as Name: value")
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if slices.Contains(ownHeaders, name) {
			return fmt.Errorf("sets %s, which is Plinth's to set; remove that line", name)
		}
		c.Headers[name] = Secret(content)
	}
	return nil
}

// ownHeaders decide what is asked for, and not who asks.
var ownHeaders = []string{"Range", "If-Range", "Accept-Encoding", "Host", "Content-Length", "Transfer-Encoding", "Connection"}

func readAuthorities(c *Credential, value []byte) error {
	if c.Authorities == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		c.Authorities = pool
	}
	if !c.Authorities.AppendCertsFromPEM(value) {
		return fmt.Errorf("has no certificate in PEM")
	}
	return nil
}

func readProxy(c *Credential, value []byte) error {
	if err := line(&c.Proxy, value); err != nil {
		return err
	}
	u, err := url.Parse(c.Proxy.Reveal())
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" {
		return fmt.Errorf("is not the URL of a proxy; write http://host:port")
	}
	return nil
}

// Apply sets the headers that prove who asks.
func (c Credential) Apply(h http.Header) {
	for name, value := range c.Headers {
		h.Set(name, value.Reveal())
	}
	switch {
	case c.Token != "":
		h.Set("Authorization", "Bearer "+c.Token.Reveal())
	case c.Username != "":
		r := http.Request{Header: h}
		r.SetBasicAuth(c.Username.Reveal(), c.Password.Reveal())
	}
}

func invalid(name, key, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, "secret %s: key %q %s", name, key, fmt.Sprintf(format, args...))
}
