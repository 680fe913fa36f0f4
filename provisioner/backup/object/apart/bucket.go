package apart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"plinth.dev/plinth/backingimage"
)

// bucket is a driver of gocloud.dev/blob that has a program do the work.
type bucket struct {
	child *child
	http  *http.Client
}

var _ driver.Bucket = (*bucket)(nil)

const (
	// maxConnections that wait for a next request.
	maxConnections = 64
	// maxMessage is the most that is read of an error's text, in bytes.
	maxMessage = 16 << 10
)

func newBucket(c *child) *bucket {
	return &bucket{child: c, http: &http.Client{Transport: &http.Transport{
		DialContext: c.dial, DisableCompression: true, MaxIdleConnsPerHost: maxConnections, IdleConnTimeout: idleTimeout,
	}}}
}

// refusal is an error that the other side told of.
type refusal struct {
	kind backingimage.Kind
	text string
}

func (r *refusal) Error() string { return r.text }

// ask sends a request and returns the answer when it is none of an error; closing its body is due.
func (b *bucket) ask(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://bucket"+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	resp, err := b.http.Do(r)
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	defer resp.Body.Close()
	kind := resp.Header.Get(headerKind)
	if kind == "" {
		return nil, backingimage.Errorf(backingimage.Unsupported, "%s is of another version than this program; install both of one", b.child.path)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return nil, err
	}
	return nil, &refusal{backingimage.KindNamed(kind), string(text)}
}

// do is ask where the answer has no content.
func (b *bucket) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (http.Header, error) {
	resp, err := b.ask(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	return resp.Header, resp.Body.Close()
}

// ready is nil when the other side has opened the bucket; no server was asked then.
func (b *bucket) ready(ctx context.Context) error {
	_, err := b.do(ctx, http.MethodGet, pathReady, nil, nil)
	return err
}

// ErrorCode implements driver.Bucket.
func (b *bucket) ErrorCode(err error) gcerrors.ErrorCode {
	var told *refusal
	switch {
	case !errors.As(err, &told):
		return gcerrors.Unknown
	case told.kind == backingimage.NotFound:
		return gcerrors.NotFound
	case told.kind == backingimage.Conflict:
		return gcerrors.FailedPrecondition
	}
	return gcerrors.Unknown
}

// As implements driver.Bucket.
func (b *bucket) As(any) bool { return false }

// ErrorAs implements driver.Bucket.
func (b *bucket) ErrorAs(error, any) bool { return false }

// Attributes implements driver.Bucket.
func (b *bucket) Attributes(ctx context.Context, key string) (*driver.Attributes, error) {
	header, err := b.do(ctx, http.MethodGet, pathLook, url.Values{queryName: {key}}, nil)
	if err != nil {
		return nil, err
	}
	size, modified, err := described(header)
	return &driver.Attributes{Size: size, ModTime: modified}, err
}

// described is what an answer's headers say of the object.
func described(h http.Header) (bytes int64, modified time.Time, err error) {
	bytes, err = strconv.ParseInt(h.Get(headerBytes), 10, 64)
	if err == nil {
		modified, err = time.Parse(timeFormat, h.Get(headerModified))
	}
	return bytes, modified, err
}

// ListPaged implements driver.Bucket, without delimiters.
func (b *bucket) ListPaged(ctx context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	query := url.Values{queryPrefix: {o.Prefix}, queryToken: {string(o.PageToken)}, queryCount: {strconv.Itoa(o.PageSize)}}
	resp, err := b.ask(ctx, http.MethodGet, pathList, query, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var l listed
	if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
		return nil, err
	}
	page := &driver.ListPage{NextPageToken: l.Next}
	for _, one := range l.Objects {
		page.Objects = append(page.Objects, &driver.ListObject{Key: one.Name, Size: one.Bytes, ModTime: one.Modified})
	}
	return page, nil
}

// NewRangeReader implements driver.Bucket, from the beginning of an object.
func (b *bucket) NewRangeReader(ctx context.Context, key string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	if offset != 0 {
		return nil, fmt.Errorf("read from byte %d: only the beginning of an object can be read", offset)
	}
	query := url.Values{queryName: {key}, queryBytes: {strconv.FormatInt(length, 10)}}
	resp, err := b.ask(ctx, http.MethodGet, pathObject, query, nil)
	if err != nil {
		return nil, err
	}
	r := reader{ReadCloser: resp.Body}
	r.attributes.ContentType = resp.Header.Get("Content-Type")
	if r.attributes.Size, r.attributes.ModTime, err = described(resp.Header); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &r, nil
}

type reader struct {
	io.ReadCloser
	attributes driver.ReaderAttributes
}

func (r *reader) Attributes() *driver.ReaderAttributes { return &r.attributes }
func (r *reader) As(any) bool                          { return false }

// NewTypedWriter implements driver.Bucket.
func (b *bucket) NewTypedWriter(ctx context.Context, key, _ string, o *driver.WriterOptions) (driver.Writer, error) {
	query := url.Values{queryName: {key}}
	if o.IfNotExist {
		query.Set(queryFresh, "true")
	}
	return &writer{ctx: ctx, bucket: b, query: query}, nil
}

// writer sends an object when it is complete.
type writer struct {
	ctx    context.Context
	bucket *bucket
	query  url.Values
	buffer bytes.Buffer
	sent   bool
}

func (w *writer) Write(p []byte) (int, error) { return w.buffer.Write(p) }

// Upload implements driver.Uploader: what can tell its size is sent from where it is.
func (w *writer) Upload(r io.Reader) error {
	w.sent = true
	_, err := w.bucket.do(w.ctx, http.MethodPut, pathObject, w.query, r)
	return err
}

func (w *writer) Close() error {
	switch {
	case w.sent:
		return nil
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	}
	return w.Upload(&w.buffer)
}

// Delete implements driver.Bucket.
func (b *bucket) Delete(ctx context.Context, key string) error {
	_, err := b.do(ctx, http.MethodDelete, pathObject, url.Values{queryName: {key}}, nil)
	return err
}

var errNotNeeded = errors.New("this is not done through another program")

// Copy implements driver.Bucket.
func (b *bucket) Copy(context.Context, string, string, *driver.CopyOptions) error {
	return errNotNeeded
}

// SignedURL implements driver.Bucket.
func (b *bucket) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errNotNeeded
}

// Close implements driver.Bucket.
func (b *bucket) Close() error {
	b.child.close()
	b.http.CloseIdleConnections()
	return nil
}
