package transfer

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// Why a caller is refused: labels of a metric, and of the log. The caller is told one sentence for all of them.
const (
	noToken      = "no-token"
	wrongToken   = "wrong-token"
	expiredToken = "expired-token"
	notAsked     = "not-asked"   // the API server could not be asked, or not so often: nothing is known of the caller
	unknownKey   = "unknown-key" // a certificate whose key is no node's
	noPeer       = "no-peer"     // no certificate, where only peers may ask
	noImage      = "no-image"    // a peer asks for what there is not
	outside      = "outside"     // a range outside of the file
)

// refusal is what every caller hears who has no good token, whether there is what it asks for or not.
const refusal = "this needs a token that spec.accessTokens of the image or snapshot has and that has not expired; plinth image upload and plinth image download make one"

// uidPattern is what the API server makes UIDs of.
var uidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// imageHandler answers a request about an image, on behalf of a caller who may ask.
type imageHandler func(w http.ResponseWriter, r *http.Request)

type callKey struct{}

// call is what is known of a request that was let through.
type call struct {
	image    *v1alpha1.BackingImage // that it is about
	snapshot *v1alpha1.Snapshot     // that it is about, when that is no image
	peer     string                 // name of the node that asks; "" when it is none
}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// imageOf is the image that a request is about.
func imageOf(ctx context.Context) *v1alpha1.BackingImage { return callOf(ctx).image }

// admission decides whether a caller may ask about the image or snapshot that the path names; without one, the reason says why not.
type admission func(r *http.Request) (c call, reason string)

// admitted lets a request through that an admission does.
func (s *Server) admitted(route string, admit admission, next imageHandler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &counted{ResponseWriter: rw}
		defer s.count(route, w)
		c, reason := admit(r)
		if c.image == nil && c.snapshot == nil {
			s.refused(r, route, reason)
			refuse(w, reason)
			return
		}
		next(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
		if w.status == http.StatusRequestedRangeNotSatisfiable {
			s.refused(r, route, outside)
		}
	})
}

// refused counts a request that was refused.
func (s *Server) refused(r *http.Request, route, reason string) {
	s.options.Metrics.refused.WithLabelValues(reason).Inc()
	klog.FromContext(r.Context()).V(2).Info("Refused a request", "route", route, "from", r.RemoteAddr, "reason", reason)
}

func refuse(w http.ResponseWriter, reason string) {
	switch reason {
	case noImage: // a peer may know, and goes on
		http.Error(w, "there is no such image or snapshot", http.StatusNotFound)
		return
	case notAsked:
		w.Header().Set("Connection", "close")
		w.Header().Set("Retry-After", "1")
		http.Error(w, "who asks cannot be checked just now; try again", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Connection", "close")
	w.Header().Set("WWW-Authenticate", "Bearer")
	http.Error(w, refusal, http.StatusUnauthorized)
}

// byToken admits who has a token of the image.
func (s *Server) byToken(r *http.Request) (call, string) {
	image, reason := opened(r, s, s.store.Images, func(i *v1alpha1.BackingImage) []v1alpha1.AccessToken { return i.Spec.AccessTokens })
	return call{image: image}, reason
}

func bearer(r *http.Request) Token {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return Token(strings.TrimSpace(token))
}

// opened is the object that the path names and the token opens; nil, and why the token opens none.
func opened[T store.Object](r *http.Request, s *Server, kind *store.Kind[T], tokens func(T) []v1alpha1.AccessToken) (none T, reason string) {
	token := bearer(r)
	if token == "" {
		return none, noToken
	}
	reason = wrongToken
	found, asked := lookUp(r.Context(), s, kind, r.PathValue("uid"), func(obj T) bool {
		known, expired := opens(token, tokens(obj), s.options.Clock.Now())
		if expired {
			reason = expiredToken
		}
		return known && !expired
	})
	if asked == notAsked {
		reason = notAsked
	}
	return found, reason
}

// lookUp finds the object with a UID that is not being deleted and for which good holds; nil, and why, when there is none. What the cache does
// not know yet may have been written just now: the API server is asked, but not by everyone at any time.
func lookUp[T store.Object](ctx context.Context, s *Server, kind *store.Kind[T], uid string, good func(T) bool) (none T, reason string) {
	is := func(obj T) bool { return string(obj.GetUID()) == uid && obj.GetDeletionTimestamp() == nil && good(obj) }
	if !uidPattern.MatchString(uid) {
		return none, noImage
	}
	known := kind.List()
	if i := slices.IndexFunc(known, is); i >= 0 {
		return known[i], ""
	}
	if !s.asking.TryAccept() {
		return none, notAsked
	}
	live, err := kind.LiveList(ctx)
	if err != nil {
		if ctx.Err() == nil { // else whoever asked has gone
			klog.FromContext(ctx).Error(err, "Cannot look up what a request is about")
		}
		return none, notAsked
	}
	if i := slices.IndexFunc(live, is); i >= 0 {
		return live[i], ""
	}
	return none, noImage
}

// whichever is good for lookUp when no more is asked of an object than its UID.
func whichever[T store.Object](T) bool { return true }
