package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/tus/tusd/v2/pkg/filelocker"
	"github.com/tus/tusd/v2/pkg/filestore"
	"github.com/tus/tusd/v2/pkg/handler"
	"golang.org/x/exp/slog"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/durable"
)

const (
	uploadsPath = "/v1/uploads/"
	// nonceKey is where an upload's metadata has what tells it from an earlier one of the same image.
	nonceKey = "plinth-nonce"
)

// newTus makes the handler of /v1/uploads/{uid}. It is behind authorized: the image is in the request's context.
func (s *Server) newTus() (http.Handler, error) {
	composer := handler.NewStoreComposer()
	composer.UseCore(s)
	composer.UseLengthDeferrer(s)
	composer.UseLocker(s)
	tus, err := handler.NewUnroutedHandler(handler.Config{
		StoreComposer: composer, BasePath: uploadsPath, MaxSize: s.uploads.maxBytes,
		Cors:                    &handler.CorsConfig{Disable: true},
		Logger:                  slog.New(silent{}),
		PreUploadCreateCallback: s.beforeCreation,
	})
	if err != nil {
		return nil, err
	}
	routes := tus.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			tus.PostFile(w, r)
		case http.MethodHead:
			tus.HeadFile(w, r)
		case http.MethodPatch:
			tus.PatchFile(w, r)
		default:
			w.Header().Set("Allow", "POST, HEAD, PATCH")
			http.Error(w, "an upload has POST, HEAD and PATCH; to end it, delete the image", http.StatusMethodNotAllowed)
		}
	}))
	return http.StripPrefix(uploadsPath, routes), nil
}

// beforeCreation gives a new upload the image's UID, and refuses one where none is wanted.
func (s *Server) beforeCreation(event handler.HookEvent) (handler.HTTPResponse, handler.FileInfoChanges, error) {
	image := imageOf(event.Context)
	if image.Spec.SourceType != v1alpha1.SourceUpload {
		return handler.HTTPResponse{}, handler.FileInfoChanges{}, tusError(backingimage.Errorf(backingimage.Invalid, "spec.sourceType: image %s has %s; only an image with upload takes one", image.Name, image.Spec.SourceType))
	}
	meta := handler.MetaData{nonceKey: uuid.NewString(), fingerprintKey: event.Upload.MetaData[fingerprintKey]}
	return handler.HTTPResponse{}, handler.FileInfoChanges{ID: string(image.UID), MetaData: meta}, nil
}

// uploadOf finds the upload of an image: on the disk whose copy is to be made of it.
func (s *Server) uploadOf(uid string) (*upload, error) {
	for _, d := range s.disks.List() {
		c, ok := s.store.Copies.Get(v1alpha1.CopyName(uid, d.UUID()))
		if !ok || !c.Spec.Origin || c.DeletionTimestamp != nil {
			continue
		}
		switch {
		case c.Status.State == v1alpha1.CopyReady:
			return nil, backingimage.Errorf(backingimage.Conflict, "the image is ready; there is nothing to upload")
		case c.Final():
			return nil, backingimage.Errorf(backingimage.Precondition, "the image has failed: %s; delete it, create it anew and upload again", c.Status.Message)
		}
		return s.uploads.at(uid, d.Layout().StagedUpload(uid))
	}
	return nil, backingimage.Errorf(backingimage.NotReady, "no disk of this node has been chosen for the image yet, or another node's has; try again, where the image's first copy is")
}

// NewUpload implements handler.DataStore.
func (s *Server) NewUpload(ctx context.Context, info handler.FileInfo) (handler.Upload, error) {
	up, err := s.uploadOf(info.ID)
	if err != nil {
		return nil, tusError(err)
	}
	var inner handler.Upload
	err = up.begin(func() (handler.FileInfo, error) {
		if err := os.MkdirAll(up.dir, 0o700); err != nil {
			return info, err
		}
		if inner, err = filestore.New(up.dir).NewUpload(ctx, info); err != nil {
			return info, err
		}
		written, err := inner.GetInfo(ctx)
		if err != nil {
			return info, err
		}
		return written, saveInfo(up, written)
	})
	if err != nil {
		return nil, tusError(err)
	}
	return s.incoming(ctx, up, inner)
}

// incoming is an upload as it is written.
func (s *Server) incoming(ctx context.Context, up *upload, inner handler.Upload) (*incoming, error) {
	info, err := inner.GetInfo(ctx)
	return &incoming{Upload: inner, upload: up, nonce: info.MetaData[nonceKey], metrics: s.options.Metrics}, err
}

// GetUpload implements handler.DataStore.
func (s *Server) GetUpload(ctx context.Context, id string) (handler.Upload, error) {
	up, err := s.uploadOf(id)
	if err == nil {
		err = up.alive()
	}
	if err != nil {
		return nil, tusError(err)
	}
	inner, err := filestore.New(up.dir).GetUpload(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.incoming(ctx, up, inner)
}

// AsLengthDeclarableUpload implements handler.LengthDeferrerDataStore.
func (s *Server) AsLengthDeclarableUpload(u handler.Upload) handler.LengthDeclarableUpload {
	return u.(*incoming)
}

// NewLock implements handler.Locker: a caller that comes back takes over from its own request that hangs.
func (s *Server) NewLock(id string) (handler.Lock, error) {
	up, err := s.uploadOf(id)
	if err != nil {
		return nil, tusError(err)
	}
	locker := filelocker.FileLocker{Path: up.dir, HolderPollInterval: 200 * time.Millisecond, AcquirerPollInterval: 100 * time.Millisecond}
	return locker.NewLock(id)
}

// saveInfo writes what tusd knows of an upload so that it survives a kill.
func saveInfo(up *upload, info handler.FileInfo) error {
	text, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("encode the upload: %w", err)
	}
	return durable.WriteFile(up.infoFile(), text, 0o600)
}

// tusError gives an error the status and the text that a caller gets.
func tusError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = backingimage.Errorf(backingimage.Full, "the disk that the image goes to is full: %w; free space on it, then upload again: it goes on where it stopped", err)
	}
	var known handler.Error
	if errors.As(err, &known) {
		return known
	}
	return handler.Error{ErrorCode: backingimage.KindOf(err).String(), Message: err.Error(), HTTPResponse: handler.HTTPResponse{
		StatusCode: httpStatus(err), Body: err.Error() + "\n", Header: handler.HTTPHeader{"Content-Type": "text/plain; charset=utf-8"},
	}}
}

// silent keeps tusd's log to itself: what matters of a request is in the metrics, and its headers hold a token.
type silent struct{}

// Enabled implements slog.Handler.
func (silent) Enabled(context.Context, slog.Level) bool { return false }

// Handle implements slog.Handler.
func (silent) Handle(context.Context, slog.Record) error { return nil }

// WithAttrs implements slog.Handler.
func (s silent) WithAttrs([]slog.Attr) slog.Handler { return s }

// WithGroup implements slog.Handler.
func (s silent) WithGroup(string) slog.Handler { return s }
