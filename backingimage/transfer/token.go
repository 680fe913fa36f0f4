package transfer

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Token opens one image until it expires. It is a secret: only its hash may be written anywhere.
type Token string

// NewToken makes a random token of 256 bits.
func NewToken() Token {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	return Token(base64.RawURLEncoding.EncodeToString(random[:]))
}

// Hash is the token's SHA-256, in hexadecimal, as spec.accessTokens holds it.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t))
	return hex.EncodeToString(sum[:])
}

// maxTokens that an image can have; the CRD says so too.
const maxTokens = 16

// Grant returns the tokens of an image with one more, which expires at a time. Expired ones are dropped, and of too many
// those that expire first.
func Grant(tokens []v1alpha1.AccessToken, t Token, until, now time.Time) []v1alpha1.AccessToken {
	kept := slices.DeleteFunc(slices.Clone(tokens), func(a v1alpha1.AccessToken) bool { return !a.ExpirationTime.After(now) })
	slices.SortStableFunc(kept, func(a, b v1alpha1.AccessToken) int { return a.ExpirationTime.Compare(b.ExpirationTime.Time) })
	kept = append(kept, v1alpha1.AccessToken{SHA256: t.Hash(), ExpirationTime: metav1.NewTime(until.Truncate(time.Second))})
	return kept[max(len(kept)-maxTokens, 0):]
}

// Revoke returns the tokens of an image without one.
func Revoke(tokens []v1alpha1.AccessToken, t Token) []v1alpha1.AccessToken {
	return slices.DeleteFunc(slices.Clone(tokens), func(a v1alpha1.AccessToken) bool { return a.SHA256 == t.Hash() })
}

// opens reports whether a token is one of an image's. It takes as long whichever it is.
func opens(t Token, tokens []v1alpha1.AccessToken, now time.Time) (found, expired bool) {
	hash := []byte(t.Hash())
	for _, a := range tokens {
		if subtle.ConstantTimeCompare(hash, []byte(a.SHA256)) == 1 {
			found, expired = true, !a.ExpirationTime.After(now)
		}
	}
	return found, expired
}
