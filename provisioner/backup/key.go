package backup

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/zeebo/blake3"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

// Contexts of BLAKE3's key derivation. They are part of the format.
const (
	contextNames   = "plinth.dev backup 1 names"
	contextSealing = "plinth.dev backup 1 sealing"
	contextCheck   = "plinth.dev backup 1 check"
)

// keyBytes is the size of the key that people keep.
const keyBytes = 32

// keys are made of the one that people keep; nil where nothing is encrypted.
type keys struct {
	names, sealing [32]byte
	check          [32]byte // is in the repository's description
}

// parseKey reads a key: 32 bytes in base64 or hexadecimal. nil for the empty text; Invalid, without the text, otherwise.
func parseKey(text credential.Secret) (*keys, error) {
	plain := strings.TrimSpace(text.Reveal())
	if plain == "" {
		return nil, nil
	}
	key, err := hex.DecodeString(plain)
	if err != nil || len(key) != keyBytes {
		key, err = base64.StdEncoding.DecodeString(plain)
	}
	if err != nil || len(key) != keyBytes {
		return nil, backingimage.Errorf(backingimage.Invalid, "the key %s of the secret is not 32 bytes in base64 or hexadecimal; make one with: openssl rand -base64 32", credential.KeyBackup)
	}
	var k keys
	blake3.DeriveKey(contextNames, key, k.names[:])
	blake3.DeriveKey(contextSealing, key, k.sealing[:])
	blake3.DeriveKey(contextCheck, key, k.check[:])
	return &k, nil
}

// sum is the ID of a content.
func (k *keys) sum(content []byte) ID {
	if k == nil {
		return ID(blake3.Sum256(content))
	}
	h, err := blake3.NewKeyed(k.names[:])
	if err != nil {
		panic(err) // the key has its length
	}
	h.Write(content)
	var id ID
	h.Sum(id[:0])
	return id
}

// aead seals one object, which is told from all others by its kind and its name.
func (k *keys) aead(kind byte, name string) cipher.AEAD {
	h, err := blake3.NewKeyed(k.sealing[:])
	if err != nil {
		panic(err) // the key has its length
	}
	h.Write([]byte{kind})
	h.WriteString(name)
	block, err := aes.NewCipher(h.Sum(nil))
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return gcm
}

// checks reports whether a description's check is this key's.
func (k *keys) checks(text string) bool {
	check, err := hex.DecodeString(text)
	return err == nil && subtle.ConstantTimeCompare(check, k.check[:]) == 1
}
