package credential

import (
	"context"

	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
)

// DefaultNamespace is where a secret is looked for that names no namespace.
const DefaultNamespace = "default"

// Ref names a secret.
type Ref struct{ Namespace, Name string }

// NewRef checks names; an empty namespace is the default one. Invalid.
func NewRef(namespace, name string) (Ref, error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 {
		return Ref{}, backingimage.Errorf(backingimage.Invalid, "secret-namespace: %q is not the name of a namespace: %s", namespace, problems[0])
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return Ref{}, backingimage.Errorf(backingimage.Invalid, "secret: %q is not the name of a secret: %s", name, problems[0])
	}
	return Ref{Namespace: namespace, Name: name}, nil
}

// String is namespace/name.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Reader gives secrets to who fetches.
type Reader interface {
	// Get returns a secret's keys and values. NotFound.
	Get(ctx context.Context, ref Ref) (map[string][]byte, error)
}

// Store keeps secrets.
type Store interface {
	Reader
	// Put makes a secret, or replaces all of one that exists.
	Put(ctx context.Context, ref Ref, data map[string][]byte) error
	// Delete removes a secret; one that does not exist is success.
	Delete(ctx context.Context, ref Ref) error
	// List returns the names of all secrets, sorted.
	List(ctx context.Context) ([]Ref, error)
}

// Load reads the credential that ref names.
func Load(ctx context.Context, from Reader, ref Ref) (Credential, error) {
	data, err := from.Get(ctx, ref)
	if err != nil {
		return Credential{}, err
	}
	return Parse(ref.String(), data)
}
