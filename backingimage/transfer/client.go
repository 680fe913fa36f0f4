package transfer

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"plinth.dev/plinth/backingimage"
)

// Client speaks to one agent about one image or snapshot.
type Client struct {
	address       string
	publicKeyHash string // of the agent's key; "" of a peer's client
	kind          string // images or snapshots
	uid           string
	token         Token // "" of a peer, which shows its certificate instead
	http          *http.Client
}

// dialTimeout bounds a connection's beginning, and how long an answer may take once all is sent.
const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 2 * time.Minute
)

// NewClient makes a client of the agent at an address (host:port) whose public key has the hash, for the image with a UID.
// It does not connect.
func NewClient(address, publicKeyHash, uid string, t Token) *Client {
	c := newClient(address, images, uid, t, pinnedConfig(publicKeyHash))
	c.publicKeyHash = publicKeyHash
	return c
}

// What a server has contents of, in its paths.
const (
	images    = "images"
	snapshots = "snapshots"
)

func newClient(address, kind, uid string, t Token, config *tls.Config) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{address: address, kind: kind, uid: uid, token: t, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: dialTimeout,
			ResponseHeaderTimeout: answerTimeout, IdleConnTimeout: idleTimeout, WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10, MaxIdleConnsPerHost: 8, DisableCompression: true,
		},
	}}
}

// Close closes connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) do(ctx context.Context, method, path string, body io.Reader, header map[string]string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.address+path, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+string(c.token))
	}
	req.Header.Set("User-Agent", "plinth")
	for key, value := range header {
		req.Header.Set(key, value)
	}
	if n, err := strconv.ParseInt(req.Header.Get("Content-Length"), 10, 64); err == nil {
		req.ContentLength = n
	}
	resp, err := c.http.Do(req)
	if err == nil {
		return resp, c.refused(resp)
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if cause := ctx.Err(); cause != nil {
		return nil, cause
	}
	var known *backingimage.Error
	if errors.As(err, &known) {
		return nil, backingimage.Errorf(known.Kind, "agent at %s: %w", c.address, err)
	}
	return nil, backingimage.Errorf(backingimage.NotReady, "agent at %s: %w", c.address, err)
}

// maxMessage is how much of a refusal is repeated.
const maxMessage = 1 << 10

// refused turns an answer that is not a success into an error with its message, and closes it.
func (c *Client) refused(resp *http.Response) error {
	if resp.StatusCode/100 == 2 {
		return nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	message := strings.TrimSpace(string(text))
	if message == "" {
		message = http.StatusText(resp.StatusCode)
	}
	return backingimage.Errorf(kindOfStatus(resp.StatusCode), "agent at %s: %s", c.address, message)
}

// Upload is how far an upload is on its server.
type Upload struct {
	Offset      int64
	Bytes       int64 // of the whole; -1 while not told
	Fingerprint string
}

// fingerprintKey is where an upload's metadata has what tells its file from another.
const fingerprintKey = "fingerprint"

const tusVersion = "1.0.0"

func (c *Client) uploadPath() string { return uploadsPath + c.uid }

// Create begins an upload of so many bytes, -1 when that is not known yet. Conflict when there is one already, or when the
// image is ready; NotReady while no disk has been chosen.
func (c *Client) Create(ctx context.Context, bytes int64, fingerprint string) error {
	header := map[string]string{
		"Tus-Resumable": tusVersion, "Upload-Length": strconv.FormatInt(bytes, 10),
		"Upload-Metadata": fingerprintKey + " " + base64.StdEncoding.EncodeToString([]byte(fingerprint)),
	}
	if bytes < 0 {
		delete(header, "Upload-Length")
		header["Upload-Defer-Length"] = "1"
	}
	resp, err := c.do(ctx, http.MethodPost, c.uploadPath(), nil, header)
	if err != nil {
		return fmt.Errorf("begin the upload: %w", err)
	}
	return resp.Body.Close()
}

// Find asks how far the upload is. NotFound when there is none; Precondition when it has expired.
func (c *Client) Find(ctx context.Context) (Upload, error) {
	resp, err := c.do(ctx, http.MethodHead, c.uploadPath(), nil, map[string]string{"Tus-Resumable": tusVersion})
	if err != nil {
		return Upload{}, fmt.Errorf("look for the upload: %w", err)
	}
	defer resp.Body.Close()
	up := Upload{Bytes: -1}
	if up.Offset, err = strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64); err != nil {
		return Upload{}, backingimage.Errorf(backingimage.Internal, "look for the upload: agent at %s: Upload-Offset is %q, which is no number", c.address, resp.Header.Get("Upload-Offset"))
	}
	if n, err := strconv.ParseInt(resp.Header.Get("Upload-Length"), 10, 64); err == nil {
		up.Bytes = n
	}
	for pair := range strings.SplitSeq(resp.Header.Get("Upload-Metadata"), ",") {
		if key, value, _ := strings.Cut(pair, " "); key == fingerprintKey {
			text, _ := base64.StdEncoding.DecodeString(value)
			up.Fingerprint = string(text)
		}
	}
	return up, nil
}

// Append sends what body has, from an offset on. bytes is how many that are, -1 when it is not known.
func (c *Client) Append(ctx context.Context, offset, bytes int64, body io.Reader) error {
	return c.patch(ctx, offset, body, map[string]string{"Content-Length": strconv.FormatInt(bytes, 10)})
}

// Declare ends an upload whose size was not known: it has as many bytes as there are.
func (c *Client) Declare(ctx context.Context, bytes int64) error {
	return c.patch(ctx, bytes, nil, map[string]string{"Upload-Length": strconv.FormatInt(bytes, 10)})
}

func (c *Client) patch(ctx context.Context, offset int64, body io.Reader, header map[string]string) error {
	header["Tus-Resumable"], header["Content-Type"] = tusVersion, "application/offset+octet-stream"
	header["Upload-Offset"] = strconv.FormatInt(offset, 10)
	resp, err := c.do(ctx, http.MethodPatch, c.uploadPath(), body, header)
	if err != nil {
		return fmt.Errorf("upload from byte %d: %w", offset, err)
	}
	return resp.Body.Close()
}
