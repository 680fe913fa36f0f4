package apart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Serve is the program: it opens the bucket that its standard input describes and serves it until nobody is left who could ask. A bucket
// that cannot be opened is told to whoever asks.
func Serve(ctx context.Context, openers map[string]object.Opener) error {
	control, err := net.FileConn(os.NewFile(controlFile, "control"))
	if err != nil {
		return errByHand
	}
	defer control.Close()
	socket, ok := control.(*net.UnixConn)
	if !ok {
		return errByHand
	}
	var s setup
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil { // it may quote the text
		return errByHand
	}
	h := &handler{}
	h.bucket, h.err = open(ctx, s, openers)
	server := http.Server{Handler: h.routes()}
	if err := server.Serve(listener{socket}); err != io.EOF {
		return err
	}
	return nil
}

var errByHand = backingimage.Errorf(backingimage.Invalid, "this program is run by plinth, which opens the files that it works with")

func open(ctx context.Context, s setup, openers map[string]object.Opener) (object.Bucket, error) {
	opener, ok := openers[s.Location.Scheme]
	if !ok {
		return object.Bucket{}, backingimage.Errorf(backingimage.Unsupported, "this program has no buckets of %s://", s.Location.Scheme)
	}
	c, err := credential.Parse("of the backup target", s.Secret)
	if err != nil {
		return object.Bucket{}, err
	}
	o := source.Options{AllowCIDRs: s.AllowCIDRs, StallTimeout: s.StallTimeout, Credential: c}
	if s.Proxy {
		o.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	}
	return opener(ctx, s.Location, o)
}

// listener accepts the connections that are handed down through a socket.
type listener struct{ control *net.UnixConn }

// Accept is io.EOF when nobody holds the other end of the socket any more.
func (l listener) Accept() (net.Conn, error) {
	one, room := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := l.control.ReadMsgUnix(one, room)
	if err != nil || n == 0 {
		return nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(room[:n])
	if err != nil {
		return nil, err
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(files[0]), "connection")
	defer file.Close()
	return net.FileConn(file)
}

func (l listener) Close() error   { return l.control.Close() }
func (l listener) Addr() net.Addr { return l.control.LocalAddr() }

// handler answers for a bucket, or says why there is none.
type handler struct {
	bucket object.Bucket
	err    error
}

func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, answer := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET " + pathReady:     func(http.ResponseWriter, *http.Request) error { return nil },
		"GET " + pathLook:      h.look,
		"GET " + pathObject:    h.read,
		"PUT " + pathObject:    h.write,
		"DELETE " + pathObject: h.delete,
		"GET " + pathList:      h.list,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := h.err
			if err == nil {
				if err = answer(w, r); err != nil {
					err = h.classify(r, err)
				}
			}
			if err != nil {
				w.Header().Set(headerKind, backingimage.KindOf(err).String())
				w.WriteHeader(http.StatusBadGateway)
				_, _ = io.WriteString(w, err.Error()) // whoever does not get it has gone
			}
		})
	}
	return mux
}

// parameter is one of a request's query.
func parameter(r *http.Request, key string) string { return r.URL.Query().Get(key) }

func (h *handler) classify(r *http.Request, err error) error {
	if parameter(r, queryFresh) != "" && gcerrors.Code(err) == gcerrors.FailedPrecondition {
		return backingimage.Errorf(backingimage.Conflict, "there is one")
	}
	return h.bucket.Classify(r.Context(), err)
}

func (h *handler) look(w http.ResponseWriter, r *http.Request) error {
	a, err := h.bucket.Attributes(r.Context(), parameter(r, queryName))
	if err == nil {
		w.Header().Set(headerBytes, strconv.FormatInt(a.Size, 10))
		w.Header().Set(headerModified, a.ModTime.Format(timeFormat))
	}
	return err
}

// read has what was asked for before it sends the first byte, since drivers compare checksums at the end.
func (h *handler) read(w http.ResponseWriter, r *http.Request) error {
	limit, err := strconv.ParseInt(parameter(r, queryBytes), 10, 64)
	if err != nil {
		return err
	}
	from, err := h.bucket.NewRangeReader(r.Context(), parameter(r, queryName), 0, limit, nil)
	if err != nil {
		return err
	}
	defer from.Close()
	data, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Header().Set(headerBytes, strconv.FormatInt(from.Size(), 10))
	w.Header().Set(headerModified, from.ModTime().Format(timeFormat))
	if _, err := w.Write(data); err != nil {
		panic(http.ErrAbortHandler) // so that it is not taken for the whole
	}
	return nil
}

// write has the whole object before it sends the first byte, so that nothing is written of one whose sender died.
func (h *handler) write(_ http.ResponseWriter, r *http.Request) error {
	if r.ContentLength < 0 {
		return errors.New("the size of the object is not told")
	}
	data := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, data); err != nil {
		panic(http.ErrAbortHandler)
	}
	o := &blob.WriterOptions{ContentType: "application/octet-stream", IfNotExist: parameter(r, queryFresh) != "", MaxConcurrency: 1}
	o.BufferSize = len(data) + 1 // which has the drivers send it as one
	if h.bucket.Sending != nil {
		o.BeforeWrite = func(as func(any) bool) error { h.bucket.Sending(data, as); return nil }
	}
	return h.bucket.Upload(r.Context(), parameter(r, queryName), bytes.NewReader(data), o)
}

func (h *handler) delete(_ http.ResponseWriter, r *http.Request) error {
	return h.bucket.Delete(r.Context(), parameter(r, queryName))
}

func (h *handler) list(w http.ResponseWriter, r *http.Request) error {
	count, err := strconv.Atoi(parameter(r, queryCount))
	if err != nil {
		return err
	}
	token := blob.FirstPageToken
	if t := parameter(r, queryToken); t != "" {
		token = []byte(t)
	}
	objects, next, err := h.bucket.ListPage(r.Context(), token, count, &blob.ListOptions{Prefix: parameter(r, queryPrefix)})
	if err != nil {
		return err
	}
	l := listed{Next: next}
	for _, one := range objects {
		l.Objects = append(l.Objects, listedObject{one.Key, one.Size, one.ModTime})
	}
	return json.NewEncoder(w).Encode(l)
}
