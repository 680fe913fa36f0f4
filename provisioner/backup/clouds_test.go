package backup_test

import (
	"testing"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/apart"
	"plinth.dev/plinth/provisioner/backup/object/cloudtest"
	"plinth.dev/plinth/test/plinthtest"
)

// clouds are the places whose drivers are in a program of their own. The race detector does without: it would have that program, and all
// that it links, compiled once more, and watches what is ours of it in object/apart.
func clouds() map[string]func(testing.TB) *place {
	if testing.Short() {
		return nil
	}
	return map[string]func(testing.TB) *place{"gs": googleServer, "azblob": azureServer}
}

func googleServer(tb testing.TB) *place {
	tb.Helper()
	account := cloudtest.MustServiceAccount(tb)
	p := cloudPlace(tb, object.SchemeGCS, cloudtest.MustGoogle(tb, bucket, account))
	p.secret = func(address string) map[string]string {
		return map[string]string{credential.KeyGoogle: account.JSON, credential.KeyGoogleServer: "http://" + address}
	}
	p.through(tb, p.address)
	return p
}

func azureServer(tb testing.TB) *place {
	tb.Helper()
	address, _ := cloudtest.MustAzure(tb, bucket)
	p := cloudPlace(tb, object.SchemeAzure, address)
	p.secret = func(address string) map[string]string {
		return map[string]string{credential.KeyAzureAccount: cloudtest.AzureAccount, credential.KeyAzureKey: cloudtest.AzureKey, credential.KeyAzureServer: "http://" + address}
	}
	p.through(tb, p.address)
	return p
}

func cloudPlace(tb testing.TB, scheme, address string) *place {
	tb.Helper()
	program := plinthtest.MustBuckets(tb)
	open := apart.Opener(func() (string, error) { return program, nil })
	return &place{url: scheme + "://" + bucket + "/some/prefix", address: address, openers: object.Openers{scheme: open}}
}
